"""Int8 by the automatic choice alone, on the default task and seven architectures, beside ONNX Runtime's defaults.

    EDGEOPT_DATA=DIR python benchmarks/quantization.py --cache FOLDER --json benchmarks/results/quantization.json

Each network is trained briefly on Fashion-MNIST (weights are kept in ``--cache``), exported, and given to
``edgeopt build model.onnx --data inputs.npz``, on a target like ``phone`` but measured on this machine itself, so that
a file slower than its float twin may not ship. The selection images judge; figures are taken on the test images.

Claims: ``architectures``, ``worst_score_drop`` (on the test images, of what ships), ``shipped_slower_than_float``,
``int8_shipped_ratio``, ``int8_small_ratio`` (int8 and at most 0.35 of float's bytes), ``int8_faster_ratio``; the same
for the peers, whose files are taken as they come. ``lost`` lists the peers' files that keep the floor and are faster
or smaller than ours. ``--nncf PYTHON`` is another environment's interpreter with nncf.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgeopt.bench.compare import ComparisonTurns, compare
from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.config.profiles import load_profile
from edgeopt.device.open import open_device
from edgeopt.statistics import LOOKS, comparison_ratio, verdict

ROOT = Path(__file__).parents[1]
MAX_DROP = 0.005
SMALL_RATIO = 0.35
CALIBRATION_SAMPLES = 256
TURNS = ComparisonTurns(pairs=LOOKS[0])
PEERS = {
    "onnxruntime-static": "static, the defaults of onnxruntime.quantization.quantize_static",
    "onnxruntime-dynamic": "dynamic, the defaults of onnxruntime.quantization.quantize_dynamic",
    "nncf": "nncf.quantize, post-training, its defaults",
}
PEER_CODE = {
    "onnxruntime-static": """
import sys, numpy as np
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
model, out, data = sys.argv[1:]
class Reader(CalibrationDataReader):
    def __init__(self): self.batches = iter(np.split(np.load(data)["x"], 8))
    def get_next(self):
        batch = next(self.batches, None)
        return None if batch is None else {"x": batch}
quant_pre_process(model, out + ".prepared", skip_symbolic_shape=True)
quantize_static(out + ".prepared", out, Reader())
""",
    "onnxruntime-dynamic": """
import sys
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
model, out, data = sys.argv[1:]
quant_pre_process(model, out + ".prepared", skip_symbolic_shape=True)
quantize_dynamic(out + ".prepared", out)
""",
    "nncf": """
import sys, numpy as np, onnx, nncf
model, out, data = sys.argv[1:]
images = np.load(data)["x"]
dataset = nncf.Dataset([{"x": image[None]} for image in images])
onnx.save(nncf.quantize(onnx.load(model), dataset, subset_size=len(images)), out)
""",
}

TRAIN_CODE = """
import math, sys, time, torch
from safetensors.torch import save_file
from benchmarks.zoo.fashion import FASHION
from edgeopt.tasks.fashion import tensors
name, out, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
torch.set_num_threads(1); torch.manual_seed(0)
images, labels = tensors("train")
network = FASHION[name]().to(memory_format=torch.channels_last)
rate = 2e-3 if name in ("transformer", "recurrent") else 4e-3
optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02)
start, done = time.monotonic(), 0.0
while done < 1:
    for chosen in torch.randperm(len(images)).split(128):
        done = (time.monotonic() - start) / seconds
        if done >= 1: break
        optimizer.param_groups[0]["lr"] = rate * min(1, done / 0.1 + 0.02) * max(0.002, 0.5 * (1 + math.cos(math.pi * done)))
        batch = images[chosen].flip(3) if torch.rand(()) < 0.5 else images[chosen]
        loss = torch.nn.functional.cross_entropy(network(batch), labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad(); loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0); optimizer.step()
save_file({key: value.contiguous() for key, value in network.state_dict().items()}, out)
"""  # noqa: E501

EXPORT_CODE = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file
from benchmarks.zoo.fashion import FASHION
from edgeopt.export.to_onnx import export
from edgeopt.tasks.fashion import Fashion, tensors
name, weights, out = sys.argv[1:]
if name == "default":
    network = Fashion.load_network()
else:
    network = FASHION[name]()
    network.load_state_dict(load_file(weights))
export(network.eval(), (tensors("train")[0][:2],), Path(out), input_names=["x"], output_names=["logits"],
       max_opset=20, max_ir=9, exporter="dynamo")
"""

DATA_CODE = """
import sys, numpy as np
from edgeopt.tasks.fashion import tensors
for split in ("train", "selection", "test"):
    images, labels = (value.numpy() for value in tensors(split))
    count = int(sys.argv[2]) if split == "train" else len(images)
    np.savez(f"{sys.argv[1]}/{split}.npz", x=images[:count], labels=labels[:count])
"""


def run_python(code: str, *arguments: object, python: str = sys.executable) -> None:
    """Run code in a process of its own: none holds both torch and a session."""
    command = [python, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise click.ClickException(last[0])


def write_target(folder: Path) -> Path:
    """Write the phone's target as one that is measured here, with the claim's floor; its latency limit is far off."""
    text = (ROOT / "targets" / "phone.toml").read_text()
    values = {
        "name": '"here"',
        "stand_in": "false",
        "processes": "3",
        "min_seconds": "0.3",
        "max_score_drop": str(MAX_DROP),
    }
    for name, value in values.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
    path = folder / "here.toml"
    path.write_text(text)
    return path


class Judge:
    """Scores and times files on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.profile = load_profile(str(folder / "here.toml"))
        self.device = open_device("local:")
        with np.load(folder / "test.npz") as data:
            self.labels = data["labels"]
            write_batches(folder / "test-batches.npz", [{"x": part} for part in np.split(data["x"], 20)])
            np.savez(folder / "one.npz", **{"0/x": data["x"][:1]})

    def score(self, model: Path) -> float:
        """Return the accuracy on the test images."""
        outputs = self.folder / "outputs.npz"
        run_model(model, self.folder / "test-batches.npz", outputs, self.device, self.profile)
        logits = np.concatenate([batch["logits"] for batch in read_batches(outputs)])
        return float((logits.argmax(1) == self.labels).mean())

    def row(self, name: str, model: Path, reference: Path, *, int8: bool, **more: Any) -> dict[str, Any]:
        """Return a file against the plain float export."""
        score, wanted = self.score(model), self.score(reference)
        comparison = compare(model, reference, self.device, self.profile, inputs=self.folder / "one.npz", turns=TURNS)
        ratio = comparison_ratio(comparison)
        return {
            "network": name, "int8": int8, "float_score": wanted, "score_drop": wanted - score,
            "size_bytes": model.stat().st_size, "size_ratio": model.stat().st_size / reference.stat().st_size,
            "latency_ratio": ratio.value, "latency_ci95": [ratio.low, ratio.high], "verdict": verdict(comparison),
            **more,
        }  # fmt: skip


def edgeopt_row(judge: Judge, name: str, model: Path, folder: Path) -> dict[str, Any]:
    """Build from the exported file, without any option for this network."""
    out, work = folder / f"{name}-out", folder / f"{name}-workspace"
    command = [sys.executable, "-m", "edgeopt", "build", model.name, "--data", "selection.npz", "--target", "here.toml",
               "--out", out.name, "--workspace", work.name, "--json"]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise click.ClickException(f"{shlex.join(command)} ended with code {done.returncode}: {done.stderr[-500:]}")
    choice = json.loads(done.stdout)
    winner = choice["winner"]
    if winner is None:
        return {"network": name, "int8": False, "score_drop": None, "choice": choice}
    steps = winner["recipe"]["graph_steps"]
    int8 = any(step["step"].startswith("quantize") for step in steps)
    return judge.row(name, out / "model.onnx", model, int8=int8, graph_steps=steps, notes=winner["notes"])


def figures(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the claims of every tool; edgeopt's have no prefix."""
    found: dict[str, Any] = {}
    for tool, its in rows.items():
        found |= _figures(its, "" if tool == "edgeopt" else f"{tool}_")
    return found


def _figures(rows: list[dict[str, Any]], prefix: str) -> dict[str, Any]:
    """Return the claims over one tool's rows."""
    done = [row for row in rows if row.get("score_drop") is not None]
    int8 = [row for row in done if row["int8"]]
    count = max(1, len(rows))  # of the networks that are finished so far
    return {
        f"{prefix}architectures": len(done),
        f"{prefix}worst_score_drop": max((row["score_drop"] for row in done), default=None),
        f"{prefix}shipped_slower_than_float": sum(row["verdict"] == "slower" for row in int8),
        f"{prefix}int8_shipped_ratio": len(int8) / count,
        f"{prefix}int8_small_ratio": sum(row["size_ratio"] <= SMALL_RATIO for row in int8) / count,
        f"{prefix}int8_faster_ratio": sum(row["verdict"] == "faster" for row in int8) / count,
    }


def lost(rows: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the peers' files that keep the floor on the test images and beat ours in time or bytes."""
    found = []
    ours = {row["network"]: row for row in rows["edgeopt"] if row["score_drop"] is not None}
    for tool in rows.keys() - {"edgeopt"}:
        for theirs in rows[tool]:
            mine = ours.get(theirs["network"])
            if mine is None or theirs["score_drop"] is None or theirs["score_drop"] > MAX_DROP:
                continue
            faster = theirs["latency_ci95"][1] < mine["latency_ci95"][0]
            if faster or theirs["size_bytes"] < mine["size_bytes"]:
                names = ("size_bytes", "latency_ratio", "score_drop")
                pair = {who: {name: row[name] for name in names} for who, row in (("ours", mine), ("theirs", theirs))}
                found.append({"network": theirs["network"], "tool": tool, **pair})
    return sorted(found, key=lambda row: (row["network"], row["tool"]))


def prepare(folder: Path, cache: Path, seconds: float, names: list[str]) -> None:
    """Write the images, the target and the exported networks into ``folder``."""
    run_python(DATA_CODE, folder, CALIBRATION_SAMPLES)
    write_target(folder)
    for name in names:
        weights = cache / f"{name}.safetensors"
        if name != "default" and not weights.exists():
            print(f"{name}: training for {seconds:.0f} s", file=sys.stderr)
            run_python(TRAIN_CODE, name, weights, seconds)
        run_python(EXPORT_CODE, name, weights, folder / f"{name}.onnx")


def write(out: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Write figures, rows and raw results."""
    result = {
        "figures": figures(rows),
        "lost": lost(rows),
        "rows": rows,
        "peers": PEERS,
        "environment": {"platform": platform.platform(), "python": platform.python_version()},
        "command": "python benchmarks/quantization.py --cache FOLDER --nncf PYTHON --json OUT",
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1))
    print(json.dumps([found[-1] for found in rows.values() if found][-1]), file=sys.stderr)


def peer_row(judge: Judge, name: str, peer: str, model: Path, nncf: str | None) -> dict[str, Any]:
    """Quantize with another tool's defaults; its file is taken as it comes."""
    result = judge.folder / f"{name}-{peer}.onnx"
    python = nncf if peer == "nncf" and nncf else sys.executable
    try:
        run_python(PEER_CODE[peer], model, result, judge.folder / "train.npz", python=python)
        return judge.row(name, result, model, int8=True)
    except click.ClickException as error:
        return {"network": name, "int8": False, "score_drop": None, "error": str(error)}


@click.command()
@click.option("--quick", is_flag=True, help="Two networks, trained for 20 s.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    required=True,
    help="Keeps the trained weights, and the rows of finished networks.",
)
@click.option("--train-seconds", default=200.0, show_default=True)
@click.option("--nncf", help="A Python with nncf, onnx and onnxruntime.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(quick: bool, cache: Path, train_seconds: float, nncf: str | None, out: Path) -> None:
    """Train, export, quantize and compare; print figures and rows, write them with raw results."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = ["default", "plain", "recurrent", "transformer", "depthwise", "hard_swish", "residual", "silu"]
    names = ["plain", "recurrent"] if quick else names
    cache = cache / "quick" if quick else cache
    cache.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"edgeopt": []}
    rows |= {peer: [] for peer in PEER_CODE if peer != "nncf" or nncf}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, cache, 20.0 if quick else train_seconds, names)
        judge = Judge(folder)
        for tool in rows:
            for name in names:
                model, kept = folder / f"{name}.onnx", cache / f"row-{tool}-{name}.json"
                if not kept.exists():
                    own = tool == "edgeopt"
                    row = edgeopt_row(judge, name, model, folder) if own else peer_row(judge, name, tool, model, nncf)
                    kept.write_text(json.dumps(row))
                rows[tool].append(json.loads(kept.read_text()))
                write(out, rows)
    print(json.dumps(figures(rows), indent=1))


if __name__ == "__main__":
    main()
