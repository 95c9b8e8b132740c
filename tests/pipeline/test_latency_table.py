from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from stub_builds import a_stub_build

from edgeopt.bench.nodes import FileTime, NodeTime
from edgeopt.config.profiles import load_profile
from edgeopt.errors import DiskFullError, StepError
from edgeopt.latency.width_template import are_distinguishable
from edgeopt.pipeline.artifacts.latency_table import (
    PROBES,
    further_dimensions,
    join_timings,
    joined_dimensions,
    latency_table,
    learn_template,
    moving_dimensions,
    probing_widths,
    teaching_widths,
)
from edgeopt.records.groups import ChannelGroup, Dimension, GroupTable, WeightShape
from edgeopt.records.latency import NoLatencyTable
from edgeopt.store.ledger import Ledger
from edgeopt.store.workspace import Workspace


def a_table(sizes):
    """A row of layers, one group after the other."""
    names = [f"g{index}" for index in range(len(sizes))]
    dims = [Dimension(fixed=0, per_channel={name: 1}) for name in names]
    return GroupTable(
        groups=tuple(
            ChannelGroup(name=name, channels=size, importance=(1.0,) * size, frozen_by=None)
            for name, size in zip(names, sizes, strict=True)
        ),
        tensors=tuple(
            WeightShape(name=f"w{index}", dims=pair, macs_per_weight=1, values_per_weight=0)
            for index, pair in enumerate(zip(dims[1:], dims[:-1], strict=True))
        ),
    )


@pytest.mark.parametrize("sizes", [(16, 16, 16), (32,) * 12, (8,) * 20, (64, 384) * 25])
def test_the_teaching_files_distinguish_every_group_from_every_other(sizes):
    table = a_table(sizes)
    widths = teaching_widths(table, moving_dimensions(table))
    assert are_distinguishable(moving_dimensions(table), widths)
    assert widths[0] == table.widths()
    assert all(1 <= one[group.name] <= group.channels for one in widths for group in table.groups)


@pytest.mark.parametrize("seed", range(8))
def test_without_the_original_every_group_moves_all_the_same(seed):
    """One that has the same width in all files would seem to cost nothing."""
    sizes = np.random.default_rng(seed).integers(2, 6, 6)
    table = a_table(tuple(int(size) for size in sizes))
    try:
        widths = teaching_widths(table, [], with_original=False)
    except StepError:
        return
    assert all(len({one[group.name] for one in widths}) > 1 for group in table.free)


def test_groups_that_cannot_shrink_need_not_be_distinguishable():
    table = a_table((16, 10, 10))
    frozen = [msgspec.structs.replace(group, frozen_by="the model's output") for group in table.groups[1:]]
    table = msgspec.structs.replace(table, groups=(table.groups[0], *frozen))
    dimensions = moving_dimensions(table)
    assert [dict(one.per_channel) for one in dimensions] == [{"g0": 1}]
    assert len(teaching_widths(table, dimensions)) == 2
    assert are_distinguishable(dimensions, teaching_widths(table, dimensions))


def test_single_groups_and_sums_of_parallel_layers_are_sizes_that_files_may_show():
    table = a_table((8, 4, 4))
    inside, query, value = (Dimension(fixed=0, per_channel={name: count}) for name, count in
                            (("g0", 1), ("g1", 4), ("g2", 4)))  # fmt: skip
    layers = [(query, inside), (query,), (query, inside), (value, inside), (inside, value)]
    tensors = [WeightShape(name="w", dims=dims, macs_per_weight=1, values_per_weight=0) for dims in layers]
    found = [
        dict(one.per_channel) for one in further_dimensions(msgspec.structs.replace(table, tensors=tuple(tensors)))
    ]
    assert found == [{"g0": 1}, {"g1": 1}, {"g2": 1}, {"g1": 8}, {"g1": 4, "g2": 4}, {"g1": 8, "g2": 4}]


def test_sizes_of_what_is_concatenated_are_sums_of_groups_in_a_row():
    found = [dict(one.per_channel) for one in joined_dimensions(a_table((8, 4, 4)))]
    assert found == [{"g0": 1, "g1": 1}, {"g1": 1, "g2": 1}, {"g0": 1, "g1": 1, "g2": 1}]


def test_if_only_the_original_has_other_nodes_a_template_is_learned_without_it():
    """As from a simplifier that fuses layers only if they are equally wide."""
    table, asked = a_table((16, 24)), []
    full = table.widths()

    def teach(widths):
        asked.append(widths)
        return [a_product(one["g0"], one["g1"], is_fused=one == full) for one in widths]

    template = learn_template(table, teach).template
    assert [full in widths for widths in asked] == [True, False]
    assert len(asked[1]) >= 2
    for widths in (full, {"g0": 5, "g1": 3}):
        model = template.at(widths)
        onnx.checker.check_model(model, full_check=True)
        assert [tensor.dims[:] for tensor in model.graph.initializer] == [[widths["g0"], widths["g1"]]]


def a_product(inside, outside, is_fused):
    """A product whose weights are (inside, outside); with a node less if it is fused."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y" if is_fused else "product"])]
    nodes += [] if is_fused else [helper.make_node("Relu", ["product"], ["y"])]
    weights = [numpy_helper.from_array(np.ones((inside, outside), np.float32), "w")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None]) for name in "xy"]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_groups_too_small_to_distinguish_are_refused():
    table = a_table((1, 1, 1))
    with pytest.raises(StepError, match="too few channels"):
        teaching_widths(table, moving_dimensions(table))


def test_probes_spread_each_group_over_its_range_at_multiples_of_the_step():
    table = a_table((128, 64, 6))
    groups = [msgspec.structs.replace(group, in_convolution=True) for group in table.groups]
    table = msgspec.structs.replace(table, groups=tuple(groups))
    probes = probing_widths(table, 8)
    assert len(probes) == PROBES
    assert probes[0] == table.widths()
    assert all(one["g0"] % 8 == 0 and one["g2"] in (6,) for one in probes)
    assert min(one["g0"] for one in probes) <= 24
    assert len({one["g0"] for one in probes}) >= 12
    pairs = {(one["g0"], one["g1"]) for one in probes}
    assert len(pairs) > 0.9 * PROBES
    correlation = np.corrcoef([one["g0"] for one in probes[1:]], [one["g1"] for one in probes[1:]])[0, 1]
    assert abs(correlation) < 0.7
    assert probes == probing_widths(table, 8)


def test_two_runs_are_joined_at_the_speed_of_the_first():
    def run(files, pace):
        return [FileTime(file, pace * 100.0, [NodeTime("n", "Conv", [], [], pace * 40.0)]) for file in files]

    found = join_timings(run([0, 1, 2], 1.0), run([0, 1, 2], 1.5), offset=3)
    assert [one.file for one in found] == [0, 1, 2, 3, 4]
    assert [one.ns for one in found] == pytest.approx([100.0] * 5)
    assert found[-1].nodes[0].ns == pytest.approx(40.0)


class FailingPool:
    """Torch processes that fail every job for this reason."""

    def __init__(self, reason):
        self.reason = reason

    def do(self, job, kind):
        raise StepError("probe", self.reason)


def a_build(folder, reason):
    """What ``latency_table`` asks of a build before anything runs on a device."""
    workspace = Workspace(folder)
    for name in ("stages", "latency", "artifacts"):
        workspace.folder(name).mkdir(parents=True, exist_ok=True)
    ledger = Ledger(workspace.ledger_file)
    return a_stub_build(
        workspace=workspace, ledger=ledger, torch_pool=FailingPool(reason), profile=load_profile("phone")
    )


def test_a_network_without_a_table_is_remembered_but_a_full_disk_ends_the_build_and_is_not(tmp_path):
    table, exported = a_table((16, 16, 16)), SimpleNamespace(sha256="a", exporter="dynamo")
    build = a_build(tmp_path, "OSError: [Errno 28] No space left on device")
    try:
        with pytest.raises(DiskFullError):
            latency_table(build, table, exported, "int8")
        build.torch_pool = FailingPool("it has a loop")
        assert latency_table(build, table, exported, "int8") == NoLatencyTable(reason="it has a loop")
        build.torch_pool = FailingPool("never asked again")
        assert latency_table(build, table, exported, "int8").reason == "it has a loop"
        assert not list(build.workspace.folder("stages").iterdir())
    finally:
        build.ledger.close()
