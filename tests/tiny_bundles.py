"""A bundle of a real small model, for tests of `edgeopt check`."""

from pathlib import Path

import numpy as np
from builders import a_baseline, a_budget, a_choice, a_trial
from tiny_models import a_network, a_run_target, write_quick_target

from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.bundle.write import write_bundle

GENEROUS = {"max_latency_ms": 1000.0, "max_peak_memory_bytes": 10**9}


def a_bundle(folder: Path, *, wrong: float = 0.0, drop_ci95: tuple[float, float] | None = None, **limits) -> Path:
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
    write_bundle(
        folder / "out",
        choice,
        model=model if won else None,
        golden_inputs=inputs if won else {},
        golden_outputs={name: array + np.float32(wrong) for name, array in outputs.items()} if won else {},
        labels=(),
        preprocessing="",
        versions={},
        seed=0,
        command="edgeopt build",
    )
    return folder / "out"
