"""`edgeopt.classification` and `edgeopt.regression`: the score and the loss follow from outputs and labels."""

import numpy as np
import pytest
import torch
from torch import nn

import edgeopt
from edgeopt.errors import DataError, TaskError
from edgeopt.records.scoring import OutputScore
from edgeopt.task import CheckedTask
from edgeopt.task.values import flat_outputs, to_numpy
from edgeopt.tasks.classification import training_loss

COUNT = 64
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(COUNT, 6, generator=GENERATOR)
CLASSES = X[:, :3].argmax(1)
YES = (X[:, 0] > 0).long()


class Take(nn.Module):
    """The first values of each sample, times a trained scale; so their largest is the class, and their sign is YES."""

    def __init__(self, count, *more):
        super().__init__()
        self.count = count
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.more = nn.Sequential(*more)

    def forward(self, x):
        return self.more(self.scale * x[:, : self.count])


def batches(labels, size=16):
    return list(zip(torch.split(X, size), torch.split(labels, size), strict=True))


def checked(model, labels, make=edgeopt.classification, **options):
    return CheckedTask(make(model, batches(labels), batches(labels), **options), "mine")


def outcome(task):
    """Return the score of the trained network, its loss on one batch, and the gradient of its scale."""
    with torch.no_grad():
        pairs = [
            ([to_numpy(value) for value in flat_outputs(task.model(*inputs))], to_numpy(targets))
            for inputs, targets in task.eval_batches()
        ]
    score = task.score([(outputs[0] if len(outputs) == 1 else tuple(outputs), t) for outputs, t in pairs])
    inputs, targets = next(task.train_epoch(0))
    loss = task.loss(task.model(*inputs), targets)
    loss.backward()
    return score, loss.item(), task.model.scale.grad.item()


PLAIN = nn.functional.cross_entropy(2 * X[:16, :3], CLASSES[:16]).item()


@pytest.mark.parametrize(
    "labels",
    [
        CLASSES,
        CLASSES[:, None],
        CLASSES.double(),
        nn.functional.one_hot(CLASSES),
        nn.functional.one_hot(CLASSES).float(),
    ],
    ids=["(N,)", "(N,1)", "float", "one-hot", "float one-hot"],
)
def test_labels_of_classes_give_cross_entropy(labels):
    score, loss, gradient = outcome(checked(Take(3), labels))
    assert (score, loss) == (1.0, pytest.approx(PLAIN, rel=1e-5))
    assert gradient != 0


def test_a_softmax_in_the_network_gives_the_same_loss():
    assert outcome(checked(Take(3, nn.Softmax(1)), CLASSES))[1] == pytest.approx(PLAIN, rel=1e-4)


BINARY = nn.functional.binary_cross_entropy_with_logits(2 * X[:16, 0], YES[:16].float()).item()


@pytest.mark.parametrize("labels", [YES, YES[:, None], YES.bool(), YES.float(), 2 * YES - 1])
@pytest.mark.parametrize("more", [(), (nn.Sigmoid(),), (nn.Flatten(0),)], ids=["logit", "sigmoid", "(N,)"])
def test_one_logit_or_sigmoid_gives_binary_cross_entropy(labels, more):
    task = checked(Take(1, *more), labels)
    score, loss, gradient = outcome(task)
    assert (score, loss) == (1.0, pytest.approx(BINARY, rel=1e-5))
    assert gradient != 0
    assert "is a yes" in task.postprocessing


def test_several_labels_give_binary_cross_entropy():
    labels = (X[:, :4] > 0).long()
    score, loss, _ = outcome(checked(Take(4), labels))
    expected = nn.functional.binary_cross_entropy_with_logits(2 * X[:16, :4], labels[:16].float())
    assert (score, loss) == (1.0, pytest.approx(expected.item(), rel=1e-5))


@pytest.mark.parametrize("ignored", [255, -100])
def test_masks_with_an_ignored_value_give_the_cross_entropy_of_what_counts(ignored):
    labels = X.reshape(COUNT, 3, 2).argmax(1)
    labels[:, 1] = ignored
    score, loss, _ = outcome(checked(Take(6, nn.Unflatten(1, (3, 2))), labels))
    expected = nn.functional.cross_entropy(2 * X[:16].reshape(16, 3, 2)[:, :, 0], labels[:16, 0])
    assert (score, loss) == (1.0, pytest.approx(expected.item(), rel=1e-5))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return {"embedding": x[:, [3, 4, 5, 0, 1]], "logits": self.scale * x[:, :3]}


def test_the_output_that_fits_the_labels_is_judged_and_trained():
    score, loss, _ = outcome(checked(TwoHeads(), CLASSES))
    assert (score, loss) == (1.0, pytest.approx(PLAIN, rel=1e-5))


def test_a_regression_has_an_error_of_which_lower_is_better():
    labels = 2 * X[:, :1] + 0.5
    task = checked(Take(1), labels, edgeopt.regression)
    score, loss, _ = outcome(task)
    assert (score, loss) == (pytest.approx(0.5), pytest.approx(0.5))
    assert task.score_direction == "lower"
    assert task.is_as_good(0.1, 0.2)
    assert not task.is_as_good(0.3, 0.2)
    squared = checked(Take(1), labels[:, 0], edgeopt.regression, score="rmse")
    assert outcome(squared)[:2] == (pytest.approx(0.5), pytest.approx(0.25))
    assert squared.sample_scores([(labels.numpy(), labels.numpy())]) is None
    assert squared.sample_statistics([(labels.numpy(), labels.numpy())]).shape == (COUNT, 2)


def test_real_numbers_for_a_classification_are_refused_with_the_right_helper():
    with pytest.raises(DataError, match=r"Use edgeopt\.regression"):
        _ = checked(Take(1), X[:, 0]).score_kind


def test_classes_for_one_logit_are_refused_before_anything_is_trained():
    with pytest.raises(DataError, match=r"score=KIND and score_output=NAME"):
        _ = checked(Take(1), CLASSES).score_kind


def test_labels_that_are_out_of_range_late_in_the_set_are_found():
    labels = CLASSES.clone()
    labels[-1] = 7
    with pytest.raises(DataError, match="'output' has 3 classes, so its labels go from 0 to 2, but they hold 0 to 7"):
        _ = checked(Take(3), labels).score_kind


def test_a_function_that_builds_the_model_is_called_once():
    calls = []
    task = checked(lambda: calls.append(1) or Take(3), CLASSES)
    outcome(task)
    task.task.build_model()
    assert calls == [1]


def test_a_loss_before_the_score_is_settled_follows_from_its_own_batch():
    task = edgeopt.classification(Take(3), batches(CLASSES), batches(CLASSES))
    assert task.loss(2 * X[:16, :3], CLASSES[:16, None]).item() == pytest.approx(PLAIN, rel=1e-5)


def test_a_direction_that_does_not_exist_is_refused():
    class Mine:
        name, score_direction = "mine", "up"
        build_model = example_inputs = train_batches = eval_batches = loss = score = lambda self, *_: None

    with pytest.raises(TaskError, match="score_direction is 'up'; it has to be 'higher' or 'lower'"):
        _ = CheckedTask(Mine(), "mine").score_direction


def test_numbers_of_classes_cannot_be_trained():
    class Numbers(Take):
        def forward(self, x):
            return super().forward(x).argmax(1)

    task = checked(Numbers(3), CLASSES)
    with pytest.raises(TaskError, match="gives the numbers of classes, which cannot be trained"):
        task.loss(task.model(X[:16]), CLASSES[:16])
    assert np.isclose(task.score([(CLASSES.numpy(), CLASSES.numpy())]), 1.0)


@pytest.mark.parametrize("has_batch_sampler", [False, True])
def test_a_loader_with_a_generator_of_its_own_gives_the_same_epoch_for_the_same_seed(has_batch_sampler):
    data = torch.utils.data.TensorDataset(X, CLASSES)
    generator = torch.Generator().manual_seed(7)
    order = {"batch_size": 16, "shuffle": True, "generator": generator}
    if has_batch_sampler:
        random = torch.utils.data.RandomSampler(data, generator=generator)
        order = {"batch_sampler": torch.utils.data.BatchSampler(random, 16, drop_last=False)}
    task = edgeopt.classification(Take(3), torch.utils.data.DataLoader(data, **order), batches(CLASSES))
    first, other, again = ([inputs for inputs, _ in task.train_batches(seed)] for seed in (1, 2, 1))
    assert all(torch.equal(one, same) for one, same in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_an_ignored_value_of_real_numbers_does_not_train():
    part = OutputScore(output="y", index=0, metric="mae", layout="values", labels="values", ignored=0)
    found = torch.full((2, 4), 5.0)
    assert float(training_loss(part, found, torch.tensor([[5.0, 0, 0, 0], [5, 5, 5, 5]]))) == 0
    assert float(training_loss(part, found, torch.tensor([[3.0, 0, 0, 0], [5, 5, 5, 5]]))) == pytest.approx(2 / 5)


@pytest.mark.parametrize("generator", [None, 7])
@pytest.mark.parametrize("part", ["eval", "test"])
def test_a_loader_that_shuffles_what_is_scored_gives_the_same_order_each_time(part, generator):
    """Otherwise the same command would find nothing of an earlier build again."""
    own = None if generator is None else torch.Generator().manual_seed(generator)
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, CLASSES), 16, shuffle=True, generator=own)
    parts = {"eval": batches(CLASSES), "test": None} | {part: shuffled}
    task = CheckedTask(edgeopt.classification(Take(3), batches(CLASSES), **parts), "task")
    read = task.eval_batches if part == "eval" else task.test_batches
    orders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        orders.append(torch.cat([inputs[0] for inputs, _ in read()]))
        before = torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(torch.rand(1), before)  # what the caller draws is not disturbed
    assert torch.equal(*orders)
    assert not torch.equal(orders[0], X)
    assert torch.equal(orders[0].flatten(1).sort(0).values, X.flatten(1).sort(0).values)
