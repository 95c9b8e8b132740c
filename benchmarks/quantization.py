"""Compare edgeopt's automatic int8 with other tools' defaults, on the default network and seven architectures.

    EDGEOPT_DATA=DIR python benchmarks/quantization.py --cache FOLDER --json benchmarks/results/quantization.json

Each architecture is trained briefly on Fashion-MNIST (``--cache`` keeps the weights). Every network is exported and
given to ``edgeopt build model.onnx --data inputs.npz``. The target is ``phone``, but with this machine as the target
itself, so an int8 file that is slower than its float counterpart does not ship. The build decides on the selection
images; the figures come from the test images.

Claims: ``architectures``, ``worst_score_drop`` (on the test images, of the shipped files),
``shipped_slower_than_float``, ``int8_shipped_ratio``, ``int8_small_ratio`` (int8 with at most 0.35 of the float file's
bytes), ``int8_faster_ratio``; the same for the other tools, whose files are used as they are. ``lost`` lists the other
tools' files that keep the score limit and are faster or smaller than edgeopt's. ``--nncf PYTHON`` is the interpreter of
an environment with nncf.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.builds import run_build
from edgeopt.bench.compare import ComparisonTurns, compare
from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.bench.run_target import RunTarget
from edgeopt.config.profiles import load_profile
from edgeopt.device.open import open_device
from edgeopt.statistics import LOOK_PAIRS, comparison_ratio, verdict

ROOT = Path(__file__).parents[1]
MAX_SCORE_DROP = 0.005
SMALL_RATIO = 0.35
CALIBRATION_SAMPLES = 256
TURNS = ComparisonTurns(pairs=LOOK_PAIRS[0])
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
from edgeopt.tasks.ready.fashion import load_tensors
name, out, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
torch.set_num_threads(1); torch.manual_seed(0)
images, labels = load_tensors("train")
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
from edgeopt.tasks.ready.fashion import Fashion, load_tensors
name, weights, out = sys.argv[1:]
if name == "default":
    network = Fashion.load_network()
else:
    network = FASHION[name]()
    network.load_state_dict(load_file(weights))
export(network.eval(), (load_tensors("train")[0][:2],), Path(out), input_names=["x"], output_names=["logits"],
       max_opset=20, max_ir=9, exporter="dynamo")
"""

DATA_CODE = """
import sys, numpy as np
from edgeopt.tasks.ready.fashion import load_tensors
for split in ("train", "selection", "test"):
    images, labels = (value.numpy() for value in load_tensors(split))
    count = int(sys.argv[2]) if split == "train" else len(images)
    np.savez(f"{sys.argv[1]}/{split}.npz", x=images[:count], labels=labels[:count])
"""


def run_python(code: str, *arguments: object, python: str = sys.executable) -> None:
    """Run code in a separate process, so that none has both torch and an ONNX Runtime session."""
    command = [python, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise click.ClickException(reason[0])


def write_target(folder: Path) -> Path:
    """Write the phone's profile with this machine as the target and ``MAX_SCORE_DROP``.

    Every network here is far below its latency limit.
    """
    text = (ROOT / "targets" / "phone.toml").read_text()
    values = {
        "name": '"here"',
        "stand_in": "false",
        "processes": "3",
        "min_seconds": "0.3",
        "max_score_drop": str(MAX_SCORE_DROP),
    }
    for name, value in values.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
    path = folder / "here.toml"
    path.write_text(text)
    return path


class FileEvaluator:
    """Scores and times files on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.profile = load_profile(str(folder / "here.toml"))
        self.target = RunTarget(
            device=open_device("local:"), profile=self.profile, kind="measured", inputs=folder / "one.npz"
        )
        with np.load(folder / "test.npz") as data:
            self.labels = data["labels"]
            write_batches(folder / "test-batches.npz", [{"x": part} for part in np.split(data["x"], 20)])
            np.savez(folder / "one.npz", x=data["x"][:1])

    def score(self, model: Path) -> float:
        """Return the accuracy on the test images."""
        outputs = self.folder / "outputs.npz"
        run_model(model, self.folder / "test-batches.npz", outputs, self.target)
        logits = np.concatenate([batch["logits"] for batch in read_batches(outputs)])
        return float((logits.argmax(1) == self.labels).mean())

    def make_row(self, name: str, model: Path, float_model: Path, *, int8: bool, **more: Any) -> dict[str, Any]:
        """Compare a file with the exported float file."""
        score, float_score = self.score(model), self.score(float_model)
        comparison = compare(model, float_model, self.target, turns=TURNS)
        ratio = comparison_ratio(comparison)
        return {
            "network": name, "int8": int8, "float_score": float_score, "score_drop": float_score - score,
            "size_bytes": model.stat().st_size, "size_ratio": model.stat().st_size / float_model.stat().st_size,
            "latency_ratio": ratio.value, "latency_ci95": [ratio.low, ratio.high], "verdict": verdict(comparison),
            **more,
        }  # fmt: skip


def build_with_edgeopt(evaluator: FileEvaluator, name: str, model: Path, folder: Path) -> dict[str, Any]:
    """Build from the exported file, with the same options for every network."""
    out = folder / f"{name}-out"
    words = [model.name, "--data", "selection.npz", "--target", "here.toml", "--out", out.name]
    words += ["--workspace", f"{name}-workspace"]
    choice = run_build(words, folder).document
    winner = choice["winner"]
    if winner is None:
        return {"network": name, "int8": False, "score_drop": None, "choice": choice}
    steps = winner["recipe"]["graph_steps"]
    int8 = any(step["step"].startswith("quantize") for step in steps)
    return evaluator.make_row(name, out / "model.onnx", model, int8=int8, graph_steps=steps, notes=winner["notes"])


def compute_figures(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the claims of every tool; edgeopt's have no prefix."""
    figures: dict[str, Any] = {}
    for tool, tool_rows in rows.items():
        figures |= _compute_tool_figures(tool_rows, "" if tool == "edgeopt" else f"{tool}_")
    return figures


def _compute_tool_figures(rows: list[dict[str, Any]], prefix: str) -> dict[str, Any]:
    done = [row for row in rows if row.get("score_drop") is not None]
    int8 = [row for row in done if row["int8"]]
    count = max(1, len(rows))  # networks finished so far
    return {
        f"{prefix}architectures": len(done),
        f"{prefix}worst_score_drop": max((row["score_drop"] for row in done), default=None),
        f"{prefix}shipped_slower_than_float": sum(row["verdict"] == "slower" for row in int8),
        f"{prefix}int8_shipped_ratio": len(int8) / count,
        f"{prefix}int8_small_ratio": sum(row["size_ratio"] <= SMALL_RATIO for row in int8) / count,
        f"{prefix}int8_faster_ratio": sum(row["verdict"] == "faster" for row in int8) / count,
    }


def find_lost(rows: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return other tools' files that keep the score limit on the test images and are faster or smaller than ours."""
    lost = []
    our_rows = {row["network"]: row for row in rows["edgeopt"] if row["score_drop"] is not None}
    for tool in rows.keys() - {"edgeopt"}:
        for theirs in rows[tool]:
            ours = our_rows.get(theirs["network"])
            if ours is None or theirs["score_drop"] is None or theirs["score_drop"] > MAX_SCORE_DROP:
                continue
            faster = theirs["latency_ci95"][1] < ours["latency_ci95"][0]
            if faster or theirs["size_bytes"] < ours["size_bytes"]:
                keys = ("size_bytes", "latency_ratio", "score_drop")
                pair = {side: {key: row[key] for key in keys} for side, row in (("ours", ours), ("theirs", theirs))}
                lost.append({"network": theirs["network"], "tool": tool, **pair})
    return sorted(lost, key=lambda row: (row["network"], row["tool"]))


def prepare(folder: Path, cache: Path, seconds: float, names: list[str]) -> None:
    """Train, and write the images, the target and the exported networks into ``folder``."""
    run_python(DATA_CODE, folder, CALIBRATION_SAMPLES)
    write_target(folder)
    for name in names:
        weights = cache / f"{name}.safetensors"
        if name != "default" and not weights.exists():
            print(f"{name}: training for {seconds:.0f} s", file=sys.stderr)
            run_python(TRAIN_CODE, name, weights, seconds)
        run_python(EXPORT_CODE, name, weights, folder / f"{name}.onnx")


def write_result(out: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Write the figures and rows so far, and print the last row."""
    result = {
        "figures": compute_figures(rows),
        "lost": find_lost(rows),
        "rows": rows,
        "peers": PEERS,
        "environment": {"platform": platform.platform(), "python": platform.python_version()},
        "command": "python benchmarks/quantization.py --cache FOLDER --nncf PYTHON --json OUT",
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1))
    print(json.dumps([tool_rows[-1] for tool_rows in rows.values() if tool_rows][-1]), file=sys.stderr)


def quantize_with_peer(evaluator: FileEvaluator, name: str, peer: str, model: Path, nncf: str | None) -> dict[str, Any]:
    """Quantize with another tool's defaults, and use the file as it is."""
    quantized = evaluator.folder / f"{name}-{peer}.onnx"
    python = nncf if peer == "nncf" and nncf else sys.executable
    try:
        run_python(PEER_CODE[peer], model, quantized, evaluator.folder / "train.npz", python=python)
        return evaluator.make_row(name, quantized, model, int8=True)
    except click.ClickException as error:
        return {"network": name, "int8": False, "score_drop": None, "error": str(error)}


@click.command()
@click.option("--quick", is_flag=True, help="Two networks, trained for 20 s.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for trained weights and the rows of finished networks.",
)
@click.option("--train-seconds", default=200.0, show_default=True)
@click.option("--nncf", help="Python interpreter with nncf, onnx and onnxruntime.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(quick: bool, cache: Path, train_seconds: float, nncf: str | None, out: Path) -> None:
    """Train, export, quantize and compare; print the figures, and write them with all rows."""
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
        evaluator = FileEvaluator(folder)
        for tool in rows:
            for name in names:
                model, row_path = folder / f"{name}.onnx", cache / f"row-{tool}-{name}.json"
                if not row_path.exists():
                    if tool == "edgeopt":
                        row = build_with_edgeopt(evaluator, name, model, folder)
                    else:
                        row = quantize_with_peer(evaluator, name, tool, model, nncf)
                    row_path.write_text(json.dumps(row))
                rows[tool].append(json.loads(row_path.read_text()))
                write_result(out, rows)
    print(json.dumps(compute_figures(rows), indent=1))


if __name__ == "__main__":
    main()
