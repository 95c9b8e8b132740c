"""Training for int8: tried where int8 misses the floor; it goes on after a kill, and gives the same again."""

import signal
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from builders import A_DISTILL, A_QUANTIZE, a_budget, a_recipe, an_artifact
from safetensors.numpy import load_file
from tiny_task import images

from edgeopt.bench.outputs import read_batches, write_batches
from edgeopt.errors import StepError
from edgeopt.graph.apply import apply_steps, find_fake_quant_sites
from edgeopt.pipeline.forms import Form, Made, score_keeps
from edgeopt.pipeline.search.accuracy_recovery import is_worth_training
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.pool import TorchPool
from edgeopt.records.codec import to_json
from edgeopt.records.recipe import Compact, QuantizeAware, Simplify
from edgeopt.records.trial import Score
from edgeopt.task import CheckedTask

TASK = f"{Path(__file__).parent.parent / 'tiny_spread.py'}:task"
FLOAT, INT8 = a_recipe(), a_recipe(int8=True)
MIXED = msgspec.structs.replace(
    INT8, graph_steps=(Simplify(), msgspec.structs.replace(A_QUANTIZE, float_nodes=("conv",)), Compact())
)
A_TASK = object.__new__(CheckedTask)  # only its type is asked for
KEEPS, MISSES = 0.005, 0.1
"""Drops of the score; the floor allows 0.01."""


def a_form(recipe, size_bytes, drop):
    made = Made(
        an_artifact(number=1, size_bytes=size_bytes), Score(value=0.9 - drop, drop=drop, drop_ci95=None, samples=512)
    )
    return Form(recipe, made, {})


def a_search(task=A_TASK, epochs=3, out_of_time=False):
    """What ``is_worth_training`` asks of a search."""
    budget = a_budget(max_score_drop=0.01)
    build = SimpleNamespace(
        data=SimpleNamespace(task=task),
        effort=SimpleNamespace(epochs=epochs),
        out_of_time=out_of_time,
        profile=SimpleNamespace(precisions=("int8", "fp32")),
    )
    return SimpleNamespace(build=build, keeps_floor=lambda form: score_keeps(form.made.score, budget))


@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        ([(INT8, 1000, MISSES), (FLOAT, 4000, KEEPS)], True),
        ([(INT8, 1000, KEEPS), (FLOAT, 4000, KEEPS)], False),
        ([(INT8, 1000, MISSES), (FLOAT, 4000, MISSES)], False),
        ([(INT8, 1000, MISSES), (FLOAT, 4000, KEEPS), (MIXED, 1010, KEEPS)], False),
        ([(INT8, 1000, MISSES), (FLOAT, 4000, KEEPS), (MIXED, 2000, KEEPS)], True),
        ([(FLOAT, 4000, KEEPS)], False),
    ],
    ids=["int8 misses", "int8 keeps", "float misses too", "mixed is as small", "mixed is larger", "no int8"],
)
def test_a_network_is_trained_for_int8_only_where_float_keeps_the_floor_and_no_small_int8_file_does(forms, expected):
    assert is_worth_training(a_search(), [a_form(*form) for form in forms]) is expected


@pytest.mark.parametrize("changes", [{"task": None}, {"epochs": 0}, {"out_of_time": True}])
def test_nothing_is_trained_for_int8_without_a_task_that_trains_or_without_time(changes):
    forms = [a_form(INT8, 1000, MISSES), a_form(FLOAT, 4000, KEEPS)]
    assert not is_worth_training(a_search(**changes), forms)


def an_int8_reference(trainers, folder):
    """Export the original and find what its int8 file rounds."""
    inputs = folder / "inputs.npz"
    write_batches(inputs, [{"input": images(32, 7)[0].numpy()}])
    network = protocol.NetworkRef(source="original", file=None)
    job = protocol.ExportJob(
        network=network, exporter="torchscript", inputs=str(inputs), expected=str(folder / "expected.npz"),
        out=str(folder / "exported.onnx"), max_opset=17, max_ir=9,
    )  # fmt: skip
    trainers.do(job, protocol.ExportDone)
    head = apply_steps(
        (Simplify(),), folder / "exported.onnx", folder / "head.onnx", calibration=None, max_opset=17, max_ir=9
    )[-1].path
    found = find_fake_quant_sites(A_QUANTIZE, head, inputs, inputs, folder / "values.npz")
    (folder / "roundings.json").write_bytes(to_json(found))
    return protocol.Int8Reference(
        roundings=str(folder / "roundings.json"),
        values=str(folder / "values.npz"),
        inputs=str(inputs),
        expected=str(folder / "rounded.npz"),
    )


def test_training_for_int8_goes_on_after_a_kill_and_the_same_seed_gives_the_same_network(tmp_path):
    aware = QuantizeAware(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=256)
    distill = msgspec.structs.replace(A_DISTILL, epochs=2, learning_rate=0.005)
    trainers = TorchPool(TASK, 1)
    try:
        reference = an_int8_reference(trainers, tmp_path)

        def train(name, progress):
            int8 = msgspec.structs.replace(reference, expected=str(tmp_path / f"{name}.npz"))
            job = protocol.TrainJob(
                parent=protocol.NetworkRef(source="original", file=None), table=None, steps=(aware, distill), seed=0,
                checkpoint=str(tmp_path / f"{name}.checkpoint.safetensors"), teacher=str(tmp_path / "teacher"),
                out=str(tmp_path / f"{name}.safetensors"), int8=int8,
            )  # fmt: skip
            trainers.do(job, protocol.TrainDone, progress)
            return load_file(job.out), read_batches(Path(int8.expected))

        def kill(done):
            process.send_signal(signal.SIGKILL)

        whole = train("whole", lambda _: None)
        with trainers.worker() as worker:
            process = worker.process
        with pytest.raises(StepError, match="SIGKILL"):
            train("killed", kill)
        epochs = []
        again = train("killed", lambda done: epochs.append(done.epoch))
    finally:
        trainers.close()
    assert 0 not in epochs
    (tensors, outputs), (tensors_again, outputs_again) = whole, again
    assert tensors.keys() == tensors_again.keys()
    assert all(np.array_equal(value, tensors_again[name]) for name, value in tensors.items())
    for batch, batch_again in zip(outputs, outputs_again, strict=True):
        assert all(np.array_equal(value, batch_again[name]) for name, value in batch.items())
    assert not list(tmp_path.glob("*checkpoint*"))
