import pytest
from tiny_models import a_network, a_run_target

from edgeopt.bench.nodes import ProfilingTurns, collect_node_shapes, profile_nodes
from edgeopt.bench.worker import read_node_times
from edgeopt.errors import StepError

SHORT = ProfilingTurns(rounds=3, seconds=0.01)
TARGET = a_run_target(batch_size=2)


def an_event(name, ts, dur, operator="Conv"):
    shapes = [{"float": [1, 3]}]
    args = {
        "op_name": operator,
        "provider": "CPUExecutionProvider",
        "input_type_shape": shapes,
        "output_type_shape": shapes,
    }
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}


def a_run(start, gap):
    run = {"cat": "Session", "name": "model_run", "ts": start - 1, "dur": 2 * gap}
    return [an_event("a", start, 2), an_event("b", start + gap, 3), run]


@pytest.fixture
def models(tmp_path):
    return [a_network(tmp_path / f"{width}.onnx", width=width, layers=3) for width in (256, 64)]


def test_every_node_of_every_file_has_a_time_and_the_larger_file_takes_longer(models):
    large, small = profile_nodes(models, TARGET, SHORT)
    assert (large.file, small.file) == (0, 1)
    assert large.ns > small.ns > 0
    assert all(node.ns > 0 for node in (*large.nodes, *small.nodes))
    assert [node.operator for node in large.nodes] == [node.operator for node in small.nodes]
    assert sum(node.ns for node in large.nodes) > 0.5 * large.ns


def test_without_optimization_every_node_of_the_file_is_listed_with_its_shapes(models):
    for nodes, width in zip(collect_node_shapes(models, TARGET), (256, 64), strict=True):
        assert [node.operator for node in nodes] == ["MatMul", "Relu"] * 3
        assert nodes[0].inputs[0] == [2, 32]
        assert nodes[2].inputs[0] == [2, width]
        assert nodes[-1].outputs == [[2, width]]


def test_the_budget_ends_the_rounds_but_the_first_files_are_always_timed(models):
    found = profile_nodes(
        [*models, *models], TARGET, ProfilingTurns(rounds=100, seconds=0.01, budget_seconds=0.0, min_models=2)
    )
    assert [one.file for one in found] == [0, 1]


def test_a_broken_file_gives_an_error(models, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(StepError, match="cannot run"):
        profile_nodes([broken], TARGET, SHORT)


def test_a_node_s_time_lasts_until_the_next_one_starts_and_the_last_one_s_is_its_duration():
    first, last = read_node_times([*a_run(0, 5), *a_run(100, 6), *a_run(200, 7)], skipped_runs=0)
    assert (first["name"], first["operator"], first["inputs"]) == ("a", "Conv", [[1, 3]])
    assert first["ns"] == 6_000
    assert last["ns"] == 3_500


def test_warm_up_runs_are_left_out_and_a_run_that_lost_the_processor_counts_as_a_usual_one():
    runs = [*a_run(0, 90), *a_run(100, 8), *a_run(200, 8), *a_run(300, 8), *a_run(400, 5000)]
    first, _ = read_node_times(runs, skipped_runs=1)
    assert first["ns"] == pytest.approx((8 + 8 + 8 + 1.25 * 8 + 1) / 4 * 1000)
