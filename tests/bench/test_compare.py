import pytest
from tiny_models import a_network, a_quick_profile, a_run_target

from edgeopt.bench.compare import ComparisonTurns, compare
from edgeopt.errors import StepError
from edgeopt.statistics import MIN_PAIRS, comparison_ratio, verdict

SHORT = ComparisonTurns(max_turns=10, pair_seconds=0.5, seconds=0.002, warmup_seconds=0.02)
EQUAL_WITHIN = 0.3  # the machine may be busy with anything while this runs; quiet ones agree within 1 %


@pytest.fixture
def models(tmp_path):
    light = a_network(tmp_path / "light.onnx", width=256, layers=2, inputs=("N", 256))
    heavy = a_network(tmp_path / "heavy.onnx", width=256, layers=8, inputs=("N", 256))
    return light, heavy


def test_a_heavier_model_is_slower_and_a_lighter_one_faster(models):
    light, heavy = models
    found = compare(heavy, light, a_run_target(batch_size=8), turns=SHORT)
    assert found.clock == "cpu"
    assert verdict(found) == "slower"
    assert comparison_ratio(found).value > 2
    assert len(found.blocks_ns) == len(found.against_blocks_ns) == MIN_PAIRS * found.blocks_per_pair
    assert all(len(block) >= SHORT.min_runs for block in found.blocks_ns + found.against_blocks_ns)
    assert verdict(compare(light, heavy, a_run_target(batch_size=8), turns=SHORT)) == "faster"


def test_a_model_is_no_different_from_itself(models):
    light, _ = models
    found = compare(light, light, a_run_target(batch_size=8), turns=SHORT)
    interval = comparison_ratio(found)
    assert verdict(found) == "no difference" or abs(interval.value - 1) < EQUAL_WITHIN
    assert abs(interval.value - 1) < EQUAL_WITHIN
    assert found.sha256 == found.against_sha256


def test_several_threads_are_compared_by_wall_time(models):
    light, heavy = models
    short = ComparisonTurns(pairs=1, max_turns=2, pair_seconds=0.1)
    profile = a_quick_profile(threads=2, allow_spinning=True)
    progress = []
    found = compare(light, heavy, a_run_target(profile), turns=short, progress=progress.append)
    assert found.clock == "wall"
    assert progress == ["comparing, pair 1 of at most 1"]


def test_slow_models_take_fewer_turns(models):
    _, heavy = models
    short = ComparisonTurns(pairs=2, max_turns=1000, min_turns=4, pair_seconds=0.0, warmup_seconds=0.0)
    assert compare(heavy, heavy, a_run_target(), turns=short).blocks_per_pair == 4


def test_a_file_that_cannot_run_is_named(models, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(StepError, match=r"compare: .*broken\.onnx"):
        compare(models[0], broken, a_run_target(), turns=SHORT)
