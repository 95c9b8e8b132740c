"""Training for int8: tried if int8 misses the score limit; it continues after a kill, and is reproducible."""

import signal
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from builders import A_DISTILL, A_QUANTIZE, a_budget, a_profile, a_recipe, a_trial, an_artifact
from safetensors.numpy import load_file
from stub_builds import a_stub_build
from tiny_task import images

from edgeopt.bench.outputs import read_batches, write_batches
from edgeopt.errors import StepError
from edgeopt.graph.apply import apply_steps, find_fake_quant_sites
from edgeopt.pipeline.search.candidate import Candidate, ScoredArtifact, Variant
from edgeopt.pipeline.search.variants import accuracy_recovery
from edgeopt.pipeline.search.variants.accuracy_recovery import is_worth_training
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.pool import TorchPool
from edgeopt.records.codec import to_json
from edgeopt.records.recipe import Compact, QuantizeAware, Simplify
from edgeopt.records.trial import Score
from edgeopt.task import Training

TASK = f"{Path(__file__).parent.parent / 'tiny_spread.py'}:task"
FLOAT, INT8 = a_recipe(), a_recipe(int8=True)
MIXED = msgspec.structs.replace(
    INT8, graph_steps=(Simplify(), msgspec.structs.replace(A_QUANTIZE, float_nodes=("conv",)), Compact())
)
A_TASK = SimpleNamespace(training=Training())
KEEPS, MISSES = 0.005, 0.1
"""Score drops; the limit allows 0.01."""


def a_variant_of(recipe, size_bytes, drop):
    score = Score(value=0.9 - drop, drop=drop, drop_ci95=None, samples=512)
    return Variant(recipe, ScoredArtifact(an_artifact(number=1, size_bytes=size_bytes), score), {})


def a_build(task=A_TASK, epochs=3, may_train=True):
    """What ``is_worth_training`` asks of a build."""
    return a_stub_build(
        budget=a_budget(max_score_drop=0.01),
        data=SimpleNamespace(task=task),
        effort=SimpleNamespace(epochs=epochs, min_steps=0),
        may_train=may_train,
        profile=msgspec.structs.replace(a_profile(), precisions=("int8", "fp32")),
    )


@pytest.mark.parametrize(
    ("variants", "expected"),
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
def test_a_network_is_trained_for_int8_only_if_float_keeps_the_limit_and_no_small_int8_file_does(variants, expected):
    assert is_worth_training(a_build(), [a_variant_of(*variant) for variant in variants]) is expected


@pytest.mark.parametrize("changes", [{"task": SimpleNamespace(training=None)}, {"epochs": 0}, {"may_train": False}])
def test_nothing_is_trained_for_int8_without_a_task_that_trains_or_without_time(changes):
    variants = [a_variant_of(INT8, 1000, MISSES), a_variant_of(FLOAT, 4000, KEEPS)]
    assert not is_worth_training(a_build(**changes), variants)


def a_trial_of(steps, drop, torch_steps=()):
    recipe = msgspec.structs.replace(a_recipe(), graph_steps=steps, torch_steps=torch_steps)
    return a_trial(1, recipe=recipe, drop=drop)


PLAIN = a_trial_of((A_QUANTIZE,), MISSES)
FOUR_BITS = msgspec.structs.replace(A_QUANTIZE, weight_bits=4)


@pytest.mark.parametrize(
    ("trials", "changes", "expected"),
    [
        ([PLAIN], {}, True),
        ([], {}, False),  # nothing says that static int8 can be made
        ([PLAIN, a_trial_of((FOUR_BITS,), MISSES)], {}, True),
        ([PLAIN, a_trial_of((FOUR_BITS,), KEEPS)], {}, False),
        ([PLAIN, a_trial_of((FOUR_BITS,), KEEPS, (A_DISTILL,))], {}, True),  # of another network
        ([PLAIN], {"may_train": False}, False),
        ([PLAIN], {"task": SimpleNamespace(training=None)}, False),
        ([PLAIN], {"weights": False}, False),
    ],
)
def test_the_smallest_network_is_trained_for_4_bits_unless_rounding_keeps_the_score(
    monkeypatch, trials, changes, expected
):
    monkeypatch.setattr(accuracy_recovery, "holds_many_weights", lambda *_: changes.get("weights", True))
    monkeypatch.setattr(accuracy_recovery, "is_pair", lambda build, exported: False)
    monkeypatch.setattr(accuracy_recovery, "sensitivity_study", lambda *_, rank: SimpleNamespace(method="minmax"))
    build = a_build(**{name: value for name, value in changes.items() if name != "weights"})
    build.effort.few_bits = True
    found = accuracy_recovery.training_for_few_bits(build, SimpleNamespace(key=None), None, trials)
    assert (found is not None) is expected
    if found is not None:
        aware, distill = found.steps
        assert (aware.weight_bits, found.parent) == (4, None)
        assert distill.learning_rate == pytest.approx(0.3 * Training().learning_rate)


def test_a_network_that_was_trained_for_its_integers_is_not_trained_for_int8_again():
    aware = QuantizeAware(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=256)
    candidate = Candidate(steps=(aware, A_DISTILL), parent=None)
    variants = [a_variant_of(INT8, 1000, MISSES), a_variant_of(FLOAT, 4000, KEEPS)]
    exported = SimpleNamespace(exporter="dynamo")
    assert accuracy_recovery.training_for_int8(a_build(), candidate, None, exported, variants) is None
    maker = SimpleNamespace(candidate=candidate)
    assert accuracy_recovery.further_variants(maker, variants) == []


def an_int8_reference(pool, folder):
    """Export the original and find the sites that its int8 file rounds."""
    inputs = folder / "inputs.npz"
    write_batches(inputs, [{"input": images(32, 7)[0].numpy()}])
    network = protocol.NetworkRef(source="original", file=None)
    job = protocol.ExportJob(
        network=network, exporter="torchscript", examples=str(inputs), inputs=str(folder / "compared.npz"),
        expected=str(folder / "expected.npz"),
        out=str(folder / "exported.onnx"), max_opset=17, max_ir=9,
    )  # fmt: skip
    pool.do(job, protocol.ExportDone)
    head = apply_steps(
        (Simplify(),), folder / "exported.onnx", folder / "head.onnx", calibration=None, max_opset=17, max_ir=9
    )[-1].path
    found = find_fake_quant_sites(A_QUANTIZE, head, inputs, inputs, folder / "values.npz")
    (folder / "sites.json").write_bytes(to_json(found))
    return protocol.Int8Reference(
        sites=str(folder / "sites.json"),
        values=str(folder / "values.npz"),
        inputs=str(inputs),
        expected=str(folder / "fake-quantized.npz"),
    )


def test_training_for_int8_goes_on_after_a_kill_and_the_same_seed_gives_the_same_network(tmp_path):
    aware = QuantizeAware(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=256)
    distill = msgspec.structs.replace(A_DISTILL, epochs=2, learning_rate=0.005)
    pool = TorchPool(TASK, 1)
    try:
        reference = an_int8_reference(pool, tmp_path)

        def train(name, progress):
            int8 = msgspec.structs.replace(reference, expected=str(tmp_path / f"{name}.npz"))
            job = protocol.TrainJob(
                parent=protocol.NetworkRef(source="original", file=None), table=None, steps=(aware, distill), seed=0,
                checkpoint=str(tmp_path / f"{name}.checkpoint.safetensors"), teacher=str(tmp_path / "teacher"),
                out=str(tmp_path / f"{name}.safetensors"), int8=int8,
            )  # fmt: skip
            pool.do(job, protocol.TrainDone, progress)
            return load_file(job.out), read_batches(Path(int8.expected))

        def kill(done):
            process.send_signal(signal.SIGKILL)

        whole = train("whole", lambda _: None)
        with pool.worker() as worker:
            process = worker.process
        with pytest.raises(StepError, match="SIGKILL"):
            train("killed", kill)
        epochs = []
        again = train("killed", lambda done: epochs.append(done.epoch))
    finally:
        pool.close()
    assert 0 not in epochs
    (tensors, outputs), (tensors_again, outputs_again) = whole, again
    assert tensors.keys() == tensors_again.keys()
    assert all(np.array_equal(value, tensors_again[name]) for name, value in tensors.items())
    for batch, batch_again in zip(outputs, outputs_again, strict=True):
        assert all(np.array_equal(value, batch_again[name]) for name, value in batch.items())
    assert not list(tmp_path.glob("*checkpoint*"))
