"""Training labels may have another form than those of the selection set."""

import pytest
import torch
from torch import nn

import edgeopt
from edgeopt.errors import DataError, TaskError
from edgeopt.task import CheckedTask

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
Y = (X @ WEIGHT.T).argmax(1)
ONE_HOT = nn.functional.one_hot(Y, 4)


def a_task(train_labels, eval_labels=Y):
    network = nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        network.weight.copy_(WEIGHT)
    return CheckedTask(edgeopt.classification(network, [(X, train_labels)], [(X, eval_labels)]), "tests")


def loss_of(task):
    [(inputs, targets)] = task.train_epoch(0)
    return float(task.loss(task.interface.run(inputs), targets))


@pytest.mark.parametrize("eval_labels", [Y, Y[:, None], ONE_HOT])
@pytest.mark.parametrize(
    "train_labels", [Y, Y[:, None], Y.float(), nn.functional.one_hot(Y, 4), nn.functional.one_hot(Y, 4).float()]
)
def test_numbers_and_one_hot_labels_give_the_same_loss(train_labels, eval_labels):
    expected = float(nn.functional.cross_entropy(X @ WEIGHT.T, Y))
    assert loss_of(a_task(train_labels, eval_labels)) == pytest.approx(expected, rel=1e-5)


def test_mixed_labels_keep_their_shares():
    mixed = 0.7 * nn.functional.one_hot(Y, 4) + 0.3 * nn.functional.one_hot(Y.flip(0), 4)
    expected = float(nn.functional.cross_entropy(X @ WEIGHT.T, mixed))
    assert loss_of(a_task(mixed)) == pytest.approx(expected, rel=1e-5)


def test_a_training_label_that_no_class_has_is_named():
    wrong = Y.clone()
    wrong[3] = 7
    with pytest.raises(DataError, match="train gives the label 7, but the network has 4 classes, 0 to 3"):
        loss_of(a_task(wrong))


def test_training_labels_of_another_shape_are_named():
    with pytest.raises(DataError, match=r"train gives labels of shape \(64, 3\), but the network's output has shape"):
        loss_of(a_task(torch.zeros(64, 3)))


@pytest.mark.parametrize("part", ["train", "eval"])
def test_a_loader_that_can_be_iterated_only_once_is_refused(part):
    batches = {"train": [(X, Y)], "eval": [(X, Y)]}
    batches[part] = iter(batches[part])
    with pytest.raises(TaskError, match=f"{part} is a list_iterator, which can be iterated only once"):
        edgeopt.classification(nn.Linear(6, 4), batches["train"], batches["eval"])


def test_labels_may_be_a_tuple_or_a_list_of_numbers():
    for labels in (tuple(Y.tolist()), Y.tolist()):
        task = CheckedTask(edgeopt.classification(nn.Linear(6, 4), [(X, Y)], [(X, labels)]), "tests")
        assert task.score_kind.parts[0].metric == "accuracy"


@pytest.mark.parametrize(("value", "found"), [(None, "NoneType"), (torch.zeros(8), "tensor 8"), ("0.5", "str")])
def test_a_score_that_is_no_number_is_named(value, found):
    task = a_task(Y)
    task.task = type("Own", (), {"score": lambda self, pairs: value})()
    with pytest.raises(TaskError, match=rf"score\(\) returned {found}"):
        task.score([])


def test_nan_in_the_data_is_not_blamed_on_the_weights():
    x = X.clone()
    x[2, 1] = float("nan")
    task = CheckedTask(edgeopt.classification(nn.Linear(6, 4), [(x, Y)], [(x, Y)]), "tests")
    with pytest.raises(TaskError, match=r"example_inputs\(\) has NaN in 'input', \(8, 6\)"):
        _ = task.model


def test_a_batch_without_a_label_that_counts_has_no_loss_and_no_gradient_that_is_nan():
    ignored = torch.full_like(Y, -100)
    assert loss_of(a_task(ignored)) == 0


def a_yes_or_no_task(train_labels):
    torch.manual_seed(0)
    labels = (Y > 1).float()
    return CheckedTask(edgeopt.classification(nn.Linear(6, 1), [(X, train_labels)], [(X, labels)]), "tests")


def test_labels_of_yes_or_no_beyond_1_are_named():
    labels = (Y > 1).float()
    assert loss_of(a_yes_or_no_task(labels)) > 0
    assert loss_of(a_yes_or_no_task(labels * (1 + 1e-6))) > 0  # mixed labels, rounded
    labels[5] = 255
    with pytest.raises(DataError, match="train gives the label 255, but the network answers yes or no: labels are 0"):
        loss_of(a_yes_or_no_task(labels))
