"""A network whose image is shrunk inside: when that is tried, and that its tensors stay those of its parent."""

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from builders import a_budget, a_recipe, a_trial
from safetensors.torch import load_file
from stub_builds import A_DISTILLATION, a_stub_build

from edgeopt.errors import StepError
from edgeopt.pipeline.artifacts.networks import original_network
from edgeopt.pipeline.context import Effort
from edgeopt.pipeline.search.refinements import lower_resolutions
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.pool import TorchPool
from edgeopt.records.codec import from_json
from edgeopt.records.groups import GroupTable
from edgeopt.records.recipe import Importance, LowerResolution, Prune
from edgeopt.task import Training

TASK = f"{Path(__file__).parent.parent / 'coarse_task.py'}:task"
L2 = Importance(method="l2")


@pytest.fixture
def pool():
    pool = TorchPool(TASK, 1)
    yield pool
    pool.close()


def a_table(pool, network, out):
    pool.do(protocol.TableJob(network=network, importance=L2, out=str(out)), protocol.TableDone)
    return from_json(out.read_bytes(), GroupTable)


def train(pool, folder, parent, steps, out, table=None):
    job = protocol.TrainJob(
        parent=parent, table=table, steps=(*steps, A_DISTILLATION), seed=0,
        checkpoint=str(folder / "checkpoint.safetensors"), teacher=str(folder / "teacher"), out=str(out),
    )  # fmt: skip
    return pool.do(job, protocol.TrainDone)


def test_a_pruned_network_goes_on_at_a_lower_resolution_with_its_own_tensors(pool, tmp_path):
    original = protocol.NetworkRef(source="original", file=None)
    table = a_table(pool, original, tmp_path / "table.json")
    widths = {group.name: group.channels // 2 for group in table.free}
    pruned, lower = (protocol.NetworkRef(source="original", file=str(tmp_path / name)) for name in ("cut", "lower"))
    train(pool, tmp_path, original, (Prune(importance=L2, widths=widths),), pruned.file, str(tmp_path / "table.json"))
    found = pool.do(protocol.InputSizesJob(network=pruned), protocol.InputSizesDone)
    assert (found.sizes, found.reason) == (((24, 24), (16, 16)), "")

    done = train(pool, tmp_path, pruned, (LowerResolution(height=24, width=24),), lower.file)
    assert done.input_size == (24, 24)
    before, after = load_file(pruned.file), load_file(lower.file)
    assert {name: tensor.shape for name, tensor in before.items()} == {name: one.shape for name, one in after.items()}
    again = a_table(pool, msgspec.structs.replace(lower, input_size=(24, 24)), tmp_path / "again.json")
    assert {name: again.widths()[name] for name in widths} == widths
    assert again.macs({}) < 0.6 * a_table(pool, pruned, tmp_path / "cut.json").macs({})


SIZES = protocol.InputSizesDone(sizes=((24, 24), (16, 16)), reason="")


def candidates(trials=(), done=SIZES, rounds=2, **limits):
    """What a build with these limits tries for its original network."""
    asked = []

    def find(job, kind):
        asked.append(job.network.source)
        if isinstance(done, Exception):
            raise done
        return done

    build = a_stub_build(
        budget=a_budget(**limits), effort=Effort(rounds=rounds, candidates=2, epochs=1, sparsities=(), low_rank=True,
        few_bits=True), ledger=SimpleNamespace(remember=lambda key, kind, make: make()),
        torch_pool=SimpleNamespace(do=find), data=SimpleNamespace(task=SimpleNamespace(training=Training())),
    )  # fmt: skip
    found, reason = lower_resolutions(build, original_network("original", 200), trials)
    return [(one.steps[0].height, one.steps[0].width) for one in found], reason, asked


def of_the_original(latency_ms, drop=0.0):
    return (a_trial(recipe=a_recipe(int8=True), latency_ms=latency_ms, drop=drop),)


def test_a_smaller_image_is_tried_if_time_is_preferred_or_no_file_is_quick_enough():
    quick, slow = of_the_original(0.2), of_the_original(5.0)
    assert candidates(quick, max_latency_ms=1.0) == ([], "", [])
    assert candidates(slow, max_latency_ms=1.0)[0] == [(24, 24), (16, 16)]
    assert candidates((*slow, *quick), max_latency_ms=1.0)[0] == []
    worse = of_the_original(0.2, drop=0.5)
    assert candidates((*slow, *worse), max_latency_ms=1.0)[0] == [(24, 24), (16, 16)]  # its int8 file is no answer
    assert candidates(quick, max_latency_ms=1.0, prefer="latency")[0] == [(24, 24), (16, 16)]
    assert candidates(slow, max_latency_ms=1.0, rounds=1)[0] == []


def test_what_is_not_tried_is_said():
    part = protocol.InputSizesDone(sizes=((24, 24),), reason="at 16x16, the model does not run")
    sizes, reason, _ = candidates(prefer="latency", done=part)
    assert sizes == [(24, 24)]
    assert reason == "Some smaller images inside the network were not tried: at 16x16, the model does not run."
    sizes, reason, _ = candidates(prefer="latency", done=StepError("trace", "the model cannot be traced."))
    assert (sizes, reason) == ([], "Smaller images inside the network were not tried: the model cannot be traced.")
