"""A bundle of a real small model, for tests of `edgeopt check`."""

from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
from builders import a_baseline, a_budget, a_choice, a_trial
from tiny_models import a_network, a_run_target, write_quick_target

from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.bundle.golden import NO_GOLDEN, Golden, output_tolerance
from edgeopt.bundle.manifest import Origin
from edgeopt.bundle.write import write_bundle
from edgeopt.config.profiles import read_profile
from edgeopt.graph.apply import convert_to_ort_format
from edgeopt.records.choice import OrtFile

AN_ORIGIN = Origin(
    min_onnxruntime="1.17.0",
    labels=("cat", "dog", "fox"),
    preprocessing="bytes divided by 255",
    postprocessing="",
    versions={"onnx": "1.23.2"},
    seed=7,
    command="edgeopt build --target phone",
)


def a_golden(inputs, outputs, *, ratio: float = 1e-3, **parts) -> Golden:
    """Golden arrays whose outputs may be off by ``ratio`` of the largest value."""
    tolerances = {name: output_tolerance(array, ratio) for name, array in outputs.items()}
    empty = {"raw": {}, "resized": {}, "answers": ()}
    return Golden(inputs=inputs, outputs=outputs, tolerances=tolerances, **(empty | parts))


GENEROUS = {"max_latency_ms": 1000.0, "max_peak_memory_bytes": 10**9}


AN_ORT_FILE = OrtFile(
    file="model.ort",
    operators_file="required_operators.config",
    size_bytes=20_000,
    download_bytes=15_000,
    level="all",
    target_platform="any",
    weights="unpacked",
    onnxruntime=version("onnxruntime"),
)


def a_bundle(
    folder: Path,
    *,
    wrong: float = 0.0,
    drop_ci95: tuple[float, float] | None = None,
    ort: OrtFile | None = None,
    **limits,
) -> Path:
    """Write a bundle of a small network with its own outputs as golden ones, or off by ``wrong``."""
    model = a_network(folder / "m.onnx")
    write_quick_target(folder)
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)}
    write_batches(folder / "in.npz", [inputs])
    run_model(model, folder / "in.npz", folder / "out.npz", a_run_target())
    outputs = read_batches(folder / "out.npz")[0]
    trials = (a_baseline(), a_trial(drop_ci95=drop_ci95))
    choice = a_choice(trials, a_budget(**(GENEROUS | limits)), target="quick")
    won = choice.winner is not None
    further = {}
    if ort is not None:
        choice = msgspec.structs.replace(choice, ort=ort)
        further = {name: folder / name for name in (ort.file, ort.operators_file)}
        convert_to_ort_format(model, *further.values(), level="all", platform="any", folds=True)
    write_bundle(
        folder / "out",
        choice,
        model=model if won else None,
        golden=a_golden(inputs, {name: array + np.float32(wrong) for name, array in outputs.items()})
        if won
        else NO_GOLDEN,
        origin=msgspec.structs.replace(AN_ORIGIN, profile=read_profile(folder / "quick.toml")),
        further=further,
    )
    return folder / "out"
