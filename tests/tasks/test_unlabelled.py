"""`edgeopt.unlabelled`: inputs in any form, who trains and who selects, and what the score is."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgeopt
from edgeopt.errors import DataError, TaskError
from edgeopt.task import CheckedTask
from edgeopt.task.values import flat_outputs, to_numpy

COUNT = 450
X = torch.randn(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return {"logits": self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))}


def net():
    torch.manual_seed(0)
    return Net().eval()


def checked(model, inputs, **options):
    return CheckedTask(edgeopt.unlabelled(model, inputs, **options), "mine")


def outputs_of(task, batch):
    return task.nest_outputs([to_numpy(value) for value in flat_outputs(task.model(*batch))])


def rows(batches):
    return torch.cat([inputs[0] for inputs, _ in batches])


FORMS = {
    "an array": X.numpy(),
    "a tensor": X,
    "batches": list(torch.split(X, 40)),
    "samples": list(X),
    "samples with labels": [(x, 1) for x in X],
    "batches with labels": [(x, torch.zeros(len(x))) for x in torch.split(X, 50)],
    "one batch each of a single sample": [x[None] for x in X],
    "a loader": DataLoader(TensorDataset(X), 32),
    "a loader of samples": DataLoader(TensorDataset(X), batch_size=None),
    "a data set": TensorDataset(X, torch.zeros(COUNT)),
    "dicts": [{"x": x, "label": 1} for x in X],
    "a dict of arrays": {"x": X.numpy()},
    "a function": lambda: list(X),
    "a generator": lambda: (x for x in torch.split(X, 64)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_inputs_gives_the_same_samples(form):
    task = checked(net(), FORMS[form])
    selects = rows(task.eval_batches())
    expected = rows(checked(net(), X).eval_batches())
    assert torch.equal(selects, expected)
    trains = rows(task.train_epoch(0))
    assert (len(trains), len(selects)) == (270, 180)
    every = torch.cat([trains, selects]).flatten(1)
    assert len(torch.unique(every, dim=0)) == COUNT


def test_a_smaller_network_is_taught_and_scored_by_the_models_own_outputs():
    task = checked(net(), X, score="accuracy")
    pairs = [(outputs_of(task, inputs), to_numpy(targets)) for inputs, targets in task.eval_batches()]
    assert task.score(pairs) == 1.0
    assert task.score_kind.text == (
        "agreement with the given model's outputs (the largest value of 'logits': accuracy)"
    )
    assert "270 inputs train, 270 of them calibrate int8, 180 others select." in task.score_kind.notes
    negated = [({"logits": -outputs["logits"]}, targets) for outputs, targets in pairs]
    assert task.score(negated) < 0.1
    assert task.sample_scores(negated).shape == (180,)
    inputs, targets = next(task.train_epoch(1))
    loss = task.loss(task.model(*inputs), targets)
    loss.backward()
    assert task.model.conv.weight.grad.abs().sum() > 0
    assert task.training.hard_weight == 0


def test_own_training_settings_never_count_labels_that_do_not_exist():
    task = checked(net(), X, training=edgeopt.Training(epochs=3))
    assert (task.training.epochs, task.training.hard_weight) == (3, 0)


def test_an_epoch_and_the_split_are_the_same_in_every_process_even_if_the_loader_shuffles():
    loaders = [DataLoader(TensorDataset(X), 32, shuffle=True) for _ in range(2)]
    torch.manual_seed(7)
    one = checked(net(), loaders[0])
    first = rows(one.eval_batches())
    torch.manual_seed(8)
    other = checked(net(), loaders[1])
    assert torch.equal(first, rows(other.eval_batches()))
    assert torch.equal(rows(one.train_epoch(3)), rows(other.train_epoch(3)))
    assert not torch.equal(rows(one.train_epoch(3)), rows(one.train_epoch(4)))


class TwoInputs(nn.Module):
    """A map, an embedding that all samples share, and a length-first state besides the answer."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(5, 7, num_layers=2, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, sequence, weight, bias=None):
        values, state = self.rnn(sequence)
        return self.head(values[:, -1]).softmax(-1) * 1.0 + 0.0 * weight.sum(), state


def test_several_inputs_and_outputs_are_told_apart():
    sequence = torch.randn(COUNT, 4, 5, generator=torch.Generator().manual_seed(1))
    weight = torch.ones(COUNT, 2)
    forms = (
        {"sequence": sequence, "weight": weight},
        [{"weight": w, "sequence": s} for s, w in zip(sequence, weight, strict=True)],
        list(zip(sequence.split(30), weight.split(30), strict=True)),
        [(s, w, torch.tensor(1)) for s, w in zip(sequence, weight, strict=True)],
    )
    torch.manual_seed(0)
    model = TwoInputs().eval()
    for form in forms:
        task = checked(model, form)
        (inputs, targets) = next(task.eval_batches())
        assert [tuple(value.shape[1:]) for value in inputs] == [(4, 5), (2,)]
        assert [tuple(value.shape) for value in targets][1] == (2, len(inputs[0]), 7)
        kind = task.score_kind
        assert [(part.index, part.layout) for part in kind.parts] == [(0, "classes")]
        assert any("Not judged, because their samples are not in dimension 0" in note for note in kind.notes)


def test_samples_of_several_lengths_train_in_batches_of_one_length():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 3)

        def forward(self, sound):
            return self.conv(sound).mean(-1)

    sounds = [torch.randn(2, 8 + index % 3) for index in range(COUNT)]
    task = checked(Pooled().eval(), sounds, dynamic_axes={"input": {2: "length"}})
    assert {inputs[0].shape[2] for inputs, _ in task.train_epoch(0)} == {8, 9, 10}
    with pytest.raises(TaskError, match="Name other dynamic dimensions with dynamic_axes"):
        list(checked(Pooled().eval(), sounds).eval_batches())


def test_inputs_that_select_and_test_may_be_given():
    task = checked(net(), X, eval=X[:50] + 1, test=DataLoader(TensorDataset(X[:20] + 2), 8))
    assert len(rows(task.train_epoch(0))) == COUNT
    assert torch.equal(rows(task.eval_batches()), X[:50] + 1)
    assert torch.equal(rows(task.test_batches()), X[:20] + 2)
    assert checked(net(), X).test_batches() is None


def test_labels_that_are_left_out_are_named():
    notes = checked(net(), FORMS["batches with labels"]).score_kind.notes
    assert "unlabelled: inputs: targets that came with the inputs are left out." in notes


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (X[:100], r"inputs has 100 samples, which are too few to train on\. Give 427 or more"),
        ([], "inputs has no inputs"),
        (torch.full_like(X, torch.nan), "has NaN in 'x'"),
        (X.double(), r"does not run on the first item, tensor 450x1x6x6 float64.*float32 instead of NumPy's float64"),
        (list("abc"), "yields str"),
        (3, "inputs is int. Give an array"),
        ([X[:8, 0, 0, 0]] * 60, "does not run on the first item, tensor 8 float32"),
    ],
    ids=["too few", "none", "NaN", "float64", "strings", "a number", "another shape"],
)
def test_what_cannot_be_taken_is_refused_with_the_next_step(inputs, message):
    task = checked(net(), inputs)
    with pytest.raises((DataError, TaskError), match=message):
        list(task.eval_batches())


def test_a_late_nan_is_found():
    wrong = X.clone()
    wrong[-1, 0, 2, 2] = torch.nan
    with pytest.raises(DataError, match="'input' has 1 NaN"):
        list(checked(net(), wrong).eval_batches())


def test_too_few_for_a_given_selection_are_refused():
    with pytest.raises(DataError, match=r"inputs has 200 samples.*Give 256 or more"):
        list(checked(net(), X[:200], eval=X[200:]).eval_batches())


def test_the_models_answers_do_not_change_with_the_module_that_edgeopt_works_on():
    task = checked(net(), X)
    before = next(task.eval_batches())[1][0]
    task.model.train()
    with torch.no_grad():
        task.model.head.weight.zero_()
    assert torch.equal(before, next(task.eval_batches())[1][0])


def test_numpy_rows_are_never_changed():
    given = np.array(X.numpy())
    list(checked(net(), given).train_epoch(0))
    assert np.array_equal(given, X.numpy())
