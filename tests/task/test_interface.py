"""Models as people write them: what goes in, what comes out, and which dimension is the batch."""

import collections
import dataclasses

import pytest
import torch
from bare_task import checked
from torch import nn

from edgeopt.errors import TaskError


class TextModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(32, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask=None, labels=None, scale: float = 1.0):
        values = self.embedding(input_ids)
        if attention_mask is not None:
            values = values * attention_mask[..., None]
        return {"logits": self.head(values.mean(1)) * scale}


IDS, MASK = torch.arange(24).reshape(4, 6), torch.ones(4, 6, dtype=torch.int64)


def test_a_dict_of_inputs_is_taken_by_the_names_of_forward():
    task = checked(TextModel(), {"attention_mask": MASK, "input_ids": IDS})
    assert task.input_names == ("input_ids", "attention_mask")  # in the order of forward()
    assert task.output_names == ("logits",)
    assert task.example_inputs[0] is not None
    assert task.nest_outputs([1]) == {"logits": 1}


def test_labels_in_the_example_are_no_inputs():
    task = checked(TextModel(), {"input_ids": IDS, "labels": torch.zeros(4, dtype=torch.int64)})
    assert task.input_names == ("input_ids",)


def test_batches_may_name_inputs_that_the_example_gives_by_position():
    encoding = collections.UserDict({"attention_mask": MASK, "input_ids": IDS + 1})
    task = checked(TextModel(), (IDS, MASK))
    task.task.eval_batches = lambda: [(encoding, None)]
    [(inputs, _)] = task.eval_batches()
    assert torch.equal(inputs[0], IDS + 1)
    assert torch.equal(inputs[1], MASK)


def test_a_batch_that_lacks_an_input_is_refused():
    task = checked(TextModel(), (IDS, MASK))
    task.task.eval_batches = lambda: [({"input_ids": IDS}, None)]
    with pytest.raises(TaskError, match=r"eval_batches\(\) gives the inputs input_ids, but example_inputs\(\) gives "):
        list(task.eval_batches())


def test_an_unknown_input_is_refused():
    with pytest.raises(TaskError, match=r"gives the inputs tokens, mask, but the model's forward\(\) takes input_ids"):
        _ = checked(TextModel(), {"tokens": IDS, "mask": MASK}).input_names


@dataclasses.dataclass
class Found:
    logits: torch.Tensor
    hidden: tuple
    loss: None = None


class Nested(nn.Module):
    """Takes a tensor and a pair, and gives a dataclass with a tuple in it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, pair):
        y = self.first(x + pair[0] * pair[1])
        return Found(self.second(torch.relu(y)), (y, x))


def test_nested_inputs_and_outputs_keep_their_nesting():
    x = torch.randn(5, 4)
    task = checked(Nested(), (x, (x, torch.tensor(2.0))))
    assert task.input_names == ("input_0", "input_1", "input_2")
    assert task.output_names == ("logits", "hidden_0", "hidden_1")
    assert task.axes.inputs == (0, 0, None)
    nested = task.nest_outputs(["a", "b", "c"])
    assert (nested.logits, nested.hidden, nested.loss) == ("a", ("b", "c"), None)


def test_a_traced_network_takes_and_gives_flat_tensors_and_the_loss_sees_the_nesting():
    from edgeopt.passes.network import Network
    from edgeopt.task.dynamic_axes import graph_axes

    x, seen = torch.randn(5, 4), []
    model = Nested()
    task = checked(model, (x, (x, torch.tensor(2.0))))
    task.task.loss = lambda outputs, targets: seen.append(outputs) or outputs.logits.sum()
    axes = graph_axes(task.trace_dims)
    with task.interface.flat_forward(task.model):
        network = Network.trace(task.model, task.example_inputs, axes)
    assert set(network.state()) == set(model.state_dict())
    flat = network.eval_module(*task.example_inputs)
    expected = model(x, (x, torch.tensor(2.0)))
    assert torch.allclose(flat[0], expected.logits)
    task.loss(network.train_module(*(value[:3] if value.dim() else value for value in task.example_inputs)), None)
    assert isinstance(seen[0], Found)
    assert seen[0].hidden[1].shape == (3, 4)


class TimeMajor(nn.Module):
    """A recurrent classifier over (time, batch, features)."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


def test_a_time_major_batch_is_found():
    task = checked(TimeMajor(), torch.randn(40, 16, 8))
    assert task.axes.inputs == (1,)
    assert task.axes.outputs == (0,)
    assert "the batch of input 'input' is dimension 1" in task.notes[0]


class Propagation(nn.Module):
    """A graph network: features of nodes, and an adjacency matrix that all samples share."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(6, 4)

    def forward(self, x, adjacency):
        return self.weight(torch.einsum("ij,bjf->bif", adjacency, x))


@pytest.mark.parametrize("nodes", [10, 8])
def test_an_input_that_all_samples_share_is_found(nodes):
    """With 8 nodes and 8 samples only a run of one sample tells."""
    adjacency = torch.rand(nodes, nodes)
    task = checked(Propagation(), (torch.randn(8, nodes, 6), adjacency))
    assert task.axes.inputs == (0, None)
    assert task.axes.outputs == (0,)


class Streaming(nn.Module):
    """One step of a recurrent network, whose state has its batch in dimension 1."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(6, 5, num_layers=2, batch_first=True)

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        return {"y": y, "state": state}


def test_a_state_with_the_batch_in_dimension_1_is_found():
    task = checked(Streaming(), {"x": torch.randn(3, 7, 6), "state": torch.zeros(2, 3, 5)})
    assert task.axes.inputs == (0, 1)
    assert task.axes.outputs == (0, 1)
    assert task.output_names == ("y", "state_out")  # a graph cannot have two values of one name


def test_the_batch_may_be_named():
    task = checked(
        Streaming(), {"x": torch.randn(2, 7, 6), "state": torch.zeros(2, 2, 5)}, batch_dim={"x": 0, "state": 1}
    )
    assert task.axes.inputs == (0, 1)


def test_a_batch_dimension_that_does_not_exist_is_refused():
    with pytest.raises(TaskError, match=r"batch_dim is 3; it has to be a dimension of every input.*input \(5, 4\)"):
        _ = checked(nn.Linear(4, 2), torch.zeros(5, 4), batch_dim=3).axes


class Neighbours(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(4, 2)

    def forward(self, x):
        return self.weight(x - x.mean(0))


def test_a_network_whose_answer_depends_on_its_neighbours_is_named():
    task = checked(Neighbours(), torch.randn(6, 4))
    assert task.axes.inputs == (0,)
    assert "depends on the other samples of its batch" in task.notes[0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: torch.jit.trace(nn.Linear(4, 2), torch.zeros(1, 4)),
            "TorchScript module, which cannot be pruned. Build",
        ),
        (lambda: torch.export.export(nn.Linear(4, 2), (torch.zeros(1, 4),)), "a torch.export program, whose channels"),
        (lambda: nn.Linear(4, 2).state_dict(), "OrderedDict with 2 entries, such as a state_dict"),
        (lambda: "model.pt", "returned str, not a torch.nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_what_is_no_module_is_refused_with_the_next_step(model, message):
    with pytest.raises(TaskError, match=message):
        _ = checked(model(), torch.zeros(2, 4)).model


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_wrappers_are_taken_off():
    inner = nn.Linear(4, 2)
    assert checked(nn.DataParallel(inner), torch.zeros(2, 4)).model is inner
    assert checked(torch.compile(inner), torch.zeros(2, 4)).model is inner


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.weight(x).relu().mean((2, 3)))


def test_training_crops_may_have_another_size():
    task = checked(Convolution(), torch.randn(4, 3, 16, 16))
    task.task.train_batches = lambda seed: [(torch.randn(4, 3, 12, 12), torch.zeros(4))]
    assert sorted(task.trace_dims[0]) == [0, 2, 3]
    assert sorted(task.interface.graph_dims[0]) == [0]
    [(inputs, _)] = task.train_epoch(0)
    assert inputs[0].shape == (4, 3, 12, 12)
    [(inputs, _)] = task.calibration_batches()
    assert inputs[0].shape == (4, 3, 16, 16)


DYNAMIC = {"input": {2: ("height", 8, 64), 3: "width"}}


def test_dynamic_dimensions_may_differ_within_their_range():
    task = checked(Convolution(), torch.randn(4, 3, 16, 16), dynamic_axes=DYNAMIC)
    task.task.eval_batches = lambda: [(torch.randn(2, 3, 64, 5), None)]
    assert len(list(task.eval_batches())) == 1
    task.task.eval_batches = lambda: [(torch.randn(2, 3, 65, 5), None)]
    with pytest.raises(TaskError, match=r"height \(dimension 2\) has to be from 8 to 64"):
        list(task.eval_batches())


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"image": {2: "height"}}, "dynamic_axes names the input 'image', but the inputs are input"),
        ({"input": {4: "height"}}, r"dynamic_axes\['input'\] names dimension 4, but example_inputs\(\) has 'input'"),
        ({"input": {2: ("height", 32, 64)}}, "'height' has size 16 there, outside the range of dynamic_axes, 32 to 64"),
        ({"input": {2: 7}}, r'has to be a name or \(name, min, max\), such as "length"'),
        ({"input": "height"}, "dynamic_axes has to be a dict such as"),
        ({"input": {1: "batch"}}, "the name 'batch' is taken"),
    ],
)
def test_wrong_dynamic_axes_are_refused(axes, message):
    with pytest.raises(TaskError, match=message):
        _ = checked(Convolution(), torch.randn(4, 3, 16, 16), dynamic_axes=axes).interface.graph_dims


def test_an_example_of_size_1_in_a_dynamic_dimension_is_refused():
    with pytest.raises(TaskError, match="'width' has size 1 there, which a trace would take for a constant"):
        _ = checked(Convolution(), torch.randn(4, 3, 16, 1), dynamic_axes=DYNAMIC).interface.graph_dims


def test_a_batch_of_another_type_is_refused():
    task = checked(nn.Linear(4, 2), torch.zeros(2, 4))
    task.task.eval_batches = lambda: [(torch.zeros(2, 4, dtype=torch.float64), None)]
    with pytest.raises(
        TaskError, match=r"eval_batches\(\) yields 'input' as float64, but example_inputs\(\) has float32"
    ):
        list(task.eval_batches())


def test_a_student_with_other_outputs_is_refused():
    task = checked(nn.Linear(4, 2), torch.zeros(2, 4), students={"small": lambda: nn.Linear(4, 3)})
    with pytest.raises(
        TaskError, match=r"student 'small' gives \(tensor 2x3 float32\) on example_inputs\(\), but the model"
    ):
        task.student("small")


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: model(**x),
        lambda model, x: model(x),
        lambda model, x: model(x["input_ids"], x["attention_mask"]),
    ],
)
def test_a_training_step_calls_the_model_as_the_user_does(call):
    seen = []

    def training_step(model, inputs, targets, teacher_outputs):
        outputs = call(model, inputs)
        seen.append((inputs, outputs, teacher_outputs))
        return outputs["logits"].square().mean()

    model = TextModel()
    task = checked(model, {"input_ids": IDS, "attention_mask": MASK}, training_step=training_step)
    flat = lambda ids, mask: tuple(model(ids, mask).values())  # noqa: E731
    loss = task.training_step(flat, (IDS[:2], MASK[:2]), None, (torch.zeros(2, 3),))
    assert loss.requires_grad
    inputs, outputs, teacher_outputs = seen[0]
    assert sorted(inputs) == ["attention_mask", "input_ids"]
    assert outputs["logits"].shape == teacher_outputs["logits"].shape == (2, 3)


@pytest.mark.parametrize("batch_dim", [None, {"input": None}])
def test_inputs_without_any_batch_are_refused(batch_dim):
    with pytest.raises(TaskError, match="tests: no input has a batch"):
        _ = checked(nn.Linear(4, 2), torch.zeros(5, 4), batch_dim=batch_dim).axes


def test_numbers_that_differ_from_batch_to_batch_are_refused_by_value():
    class Scaled(nn.Linear):
        def forward(self, x, scale):
            return super().forward(x) * scale

    task = checked(Scaled(4, 2), (torch.zeros(5, 4), 2.0))
    task.task.eval_batches = lambda: [((torch.zeros(5, 4), 3.0), None)]
    with pytest.raises(TaskError, match=r"gives \(3\.0,\) among its inputs, but example_inputs\(\) gives \(2\.0,\)"):
        list(task.eval_batches())


def test_a_model_that_does_not_run_is_named_before_its_batch_is_looked_for():
    with pytest.raises(TaskError, match=r"the model does not run on example_inputs\(\) of shape \(3, 5\)"):
        _ = checked(nn.Linear(4, 2), torch.zeros(3, 5)).axes
