import numpy as np
import pytest

from edgeopt.errors import ParityError
from edgeopt.export.edge_inputs import LARGE, make_edge_inputs
from edgeopt.export.parity import check_edge_outputs
from edgeopt.records.trial import EdgeInput

SOUND = np.random.RandomState(0).normal(size=(2, 8)).astype(np.float32)


def test_quantities_become_zero_one_tiny_and_large_and_nothing_else_changes():
    examples = {
        "sound": SOUND,
        "tokens": np.array([[3, 5], [7, 2]]),
        "flags": np.array([[0.0, 1.0], [1.0, 1.0]], np.float32),
        "mask": np.array([[0.0, -0.5, -3e38]], np.float32),
    }
    made = make_edge_inputs(examples)
    assert [kind for kind, _ in made][:2] == ["every value is 0", "every value is 1"]
    assert {kind: float(np.abs(batch["sound"]).max() / np.abs(SOUND).max()) for kind, batch in made[2:]} == {
        "every value is 1e-9 of an example's": pytest.approx(1e-9),
        LARGE: pytest.approx(1e3),
    }
    assert all(batch[name] is examples[name] for _, batch in made for name in ("tokens", "flags", "mask"))
    assert make_edge_inputs({"tokens": examples["tokens"]}) == []


def test_each_of_several_inputs_is_zero_while_the_others_stay():
    made = dict(make_edge_inputs({"a": SOUND, "b": SOUND}))
    batch = made["every value of 'b' is 0"]
    assert batch["a"] is SOUND
    assert not batch["b"].any()


def test_a_file_has_to_be_finite_and_right_where_the_network_is():
    zeros, lost = [np.zeros((2, 3))], [np.full((2, 3), np.nan)]
    edge = EdgeInput(kind="every value is 0", steady=True)
    with pytest.raises(ParityError, match="output 0 has 6 of 6 values that are not finite if every value is 0, and"):
        check_edge_outputs(zeros, lost, edge, stage="exported", tolerance=1e-3)
    with pytest.raises(ParityError, match=r"output 0 is off by 0\.5 of its largest value; 0\.001 is allowed if every"):
        check_edge_outputs([np.ones(3)], [np.full(3, 0.5)], edge, stage="exported", tolerance=1e-3)
    check_edge_outputs([np.ones(3)], [np.full(3, 0.5)], edge, stage="quantized", tolerance=None)
    with pytest.raises(ParityError, match="not finite if every value is 0"):
        check_edge_outputs(zeros, lost, edge, stage="quantized", tolerance=None)


def test_large_inputs_count_only_where_rounding_does_not_decide():
    ones, infinite = [np.ones(3)], [np.full(3, np.inf)]
    check_edge_outputs(ones, infinite, EdgeInput(kind=LARGE, steady=True), stage="float16", tolerance=None)
    check_edge_outputs(ones, infinite, EdgeInput(kind=LARGE, steady=False), stage="exported", tolerance=1e-3)
    with pytest.raises(ParityError):
        check_edge_outputs(ones, infinite, EdgeInput(kind=LARGE, steady=True), stage="exported", tolerance=1e-3)
