"""States that are fed back over sequences of chunks."""

import numpy as np
import pytest
from onnx_files import accumulator, save, value

from edgeopt.errors import DataError, InputError
from edgeopt.records.preprocessing import DataOptions
from edgeopt.tasks.given.onnx_file import OnnxTask

STATES = DataOptions(states={"s": "next"})


@pytest.fixture
def sequences(tmp_path):
    (tmp_path / "data").mkdir()
    for number, steps in enumerate([3, 4, 3, 4, 3, 4, 3, 4]):
        np.save(tmp_path / "data" / f"{number}.npy", np.full((steps, 2), number + 1, np.float32))
    return tmp_path / "data"


def test_each_step_of_sequences_is_a_batch_and_later_ones_take_the_state_of_the_step_before(tmp_path, sequences):
    task = OnnxTask(accumulator(tmp_path / "m.onnx"), sequences, options=STATES)
    assert (task.input_axes, task.output_names) == ((0, 1), ("y",))
    for batch in task.batches():
        assert batch["x"].shape[0] == batch["s"].shape[1]
        assert not batch["s"].any()
    fed = task.fed_batches()
    assert [set(batch) for batch in fed] == [{"x"} if step.continues else {"x", "s"} for step in task.selecting]
    assert [step.continues for step in task.selecting] == [False, True, True, False, True, True, True]


def test_recorded_states_are_those_of_a_real_run(tmp_path, sequences):
    task = OnnxTask(accumulator(tmp_path / "m.onnx"), sequences, options=STATES)
    outputs, state = [], None
    for step in task.selecting:
        x = step.group.inputs["x"]
        state = x[None] if not step.continues else state + x[None]
        outputs.append({"y": state[0], "next": state})
    task.record_states(task.selecting, outputs)
    for step, found in zip(task.selecting, outputs, strict=True):
        assert np.array_equal(step.group.inputs["s"] + step.group.inputs["x"], found["next"])


def test_states_that_do_not_exist_or_have_no_size_are_refused(tmp_path, sequences):
    model = accumulator(tmp_path / "m.onnx")
    for states, reason in (
        ({"state": "next"}, "has no input 'state'"),
        ({"s": "nxt"}, r"has no output 'nxt' \(did you mean 'next'\?\)"),
        ({"s": "next", "x": "y"}, "--state names every input"),
    ):
        with pytest.raises(InputError, match=reason):
            OnnxTask(model, sequences, options=DataOptions(states=states))
    open_size = save(
        tmp_path / "o.onnx",
        [],
        [value("x", ["n", 2]), value("s", [1, "n", "width"])],
        [value("x", ["n", 2]), value("s", [1, "n", "width"])],
    )
    with pytest.raises(
        InputError, match=r"the state 's' takes \[1, n, width\], so its size is not known: say it with --shape"
    ):
        OnnxTask(open_size, sequences, options=DataOptions(states={"s": "s"}))
    asked = DataOptions(states={"s": "s"}, sizes={"s": (1, 1, 2)})
    assert OnnxTask(open_size, sequences, options=asked).batches()[0]["s"].shape[2] == 2


def test_labels_of_sequences_are_those_of_each_step(tmp_path):
    model, x = accumulator(tmp_path / "m.onnx"), np.ones((40, 3, 2), np.float32)
    np.savez(tmp_path / "d.npz", x=x, labels=np.arange(120).reshape(40, 3))
    task = OnnxTask(model, tmp_path / "d.npz", options=STATES)
    first = [int(labels[0]) for labels in task.target_batches()]
    assert first[0] % 3 == 0
    assert first == [first[0], first[0] + 1, first[0] + 2]
    np.savez(tmp_path / "d.npz", x=x, labels=np.arange(40))
    with pytest.raises(DataError, match=r"a sequence of 3 steps have shape \(\).* give a label for each"):
        OnnxTask(model, tmp_path / "d.npz", options=STATES)
    np.savez(tmp_path / "d.npz", x=x[:, :0])
    with pytest.raises(DataError, match=r"the same number of steps, at least one; found \{'x': 0\}"):
        OnnxTask(model, tmp_path / "d.npz", options=STATES)


def test_labels_of_a_files_steps_need_no_row_for_the_sample(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(4):
        np.savez(tmp_path / "data" / f"{number}.npz", x=np.ones((3, 2), np.float32), labels=np.arange(3) + number)
    task = OnnxTask(accumulator(tmp_path / "m.onnx"), tmp_path / "data", options=STATES)
    first, *others = [labels.tolist() for labels in task.target_batches()]
    assert len(first) == 3
    assert others == [[label + step for label in first] for step in (1, 2)]
