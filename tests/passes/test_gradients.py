"""A batch that does not fit into the memory is trained in parts, with the same gradient."""

import pytest
import torch
from torch import nn

from edgeopt.errors import StepError
from edgeopt.passes.distill.averaging import AveragedWeights
from edgeopt.passes.distill.compute import CPU
from edgeopt.passes.distill.gradients import GradientStep
from edgeopt.passes.distill.parts import TaughtBatch, split_samples
from edgeopt.task.batch_axes import BatchAxes

AXES = BatchAxes((0,), (0,))
FLOAT32_SUMS = 1e-6


class Crowded(nn.Module):
    """A linear network on a device that holds ``limit`` samples at most."""

    def __init__(self, limit):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.limit = nn.Linear(4, 3), limit
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return (self.layer(x),)


def loss(outputs, teacher_outputs, targets):
    return nn.functional.cross_entropy(outputs[0], targets) + nn.functional.mse_loss(outputs[0], teacher_outputs[0])


def a_batch(samples=10, targets=None):
    torch.manual_seed(1)
    labels = torch.arange(samples) % 3 if targets is None else targets
    return TaughtBatch((torch.randn(samples, 4),), labels, (torch.randn(samples, 3),))


def run(module, batch, **options):
    step = GradientStep(module, CPU, loss, axes=lambda: AXES, **options)
    return step, float(step.run(batch, None, lambda value: None))


@pytest.mark.parametrize("limit", [9, 4, 1])
def test_a_batch_is_halved_until_it_fits_and_its_gradient_stays_the_same(limit):
    whole, crowded = Crowded(10), Crowded(limit)
    _, expected = run(whole, a_batch())
    step, found = run(crowded, a_batch())
    assert found == pytest.approx(expected, rel=FLOAT32_SUMS)
    torch.testing.assert_close(crowded.layer.weight.grad, whole.layer.weight.grad, rtol=1e-5, atol=FLOAT32_SUMS)
    assert len(step.notes) == 1
    assert "batches of 10 samples did not fit into the memory of cpu" in step.notes[0]
    crowded.sizes.clear()
    step.run(a_batch(), None, lambda value: None)
    assert max(crowded.sizes) <= limit, "the next batch is split at once"


def test_a_single_sample_that_does_not_fit_is_an_error_with_the_next_step():
    with pytest.raises(StepError, match=r"a single sample does not fit.*\(10, 4\).*smaller batches"):
        run(Crowded(0), a_batch())


def test_a_batch_whose_targets_cannot_be_split_is_an_error_and_never_a_wrong_gradient():
    boxes = torch.zeros(17, 4)  # of all images of the batch together
    with pytest.raises(StepError, match="targets cannot be split into samples"):
        run(Crowded(5), a_batch(targets={"boxes": boxes}))


def test_another_error_is_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(Crowded(10), TaughtBatch((torch.randn(4, 5),), torch.zeros(4), (torch.randn(4, 3),)))


def test_careful_training_has_half_batches():
    module = Crowded(10)
    run(module, a_batch(), parts=2)
    assert module.sizes == [5, 5]


def test_nested_targets_lists_of_samples_and_other_batch_dimensions_are_split_along_their_samples():
    targets = {"labels": torch.arange(4), "boxes": [torch.zeros(n, 4) for n in (1, 0, 2, 5)], "weight": 0.5, "id": None}
    batch = TaughtBatch((torch.arange(24).reshape(6, 4), torch.ones(3)), targets, (torch.arange(4),))
    (first, share), (second, _) = split_samples(batch, BatchAxes((1, None), (0,)), 2)
    assert share == 0.5
    assert torch.equal(first.inputs[0], batch.inputs[0][:, :2])
    assert torch.equal(first.inputs[1], torch.ones(3))
    assert [len(one) for one in second.targets["boxes"]] == [2, 5]
    assert torch.equal(second.targets["labels"], torch.tensor([2, 3]))
    assert (second.targets["weight"], second.targets["id"]) == (0.5, None)
    assert torch.equal(second.teacher_outputs[0], torch.tensor([2, 3]))


def test_a_tasks_own_step_replaces_the_losses():
    module = Crowded(10)

    def own(model, inputs, targets, teacher_outputs):
        return model(*inputs)[0].square().mean()

    _, value = run(module, a_batch(), own_step=own)
    assert value == pytest.approx(module(a_batch().inputs[0])[0].square().mean().item())


def test_averaged_weights_follow_the_weights_and_are_used_only_in_their_block():
    module = nn.BatchNorm1d(2)
    average = AveragedWeights(module, 0.5)
    with torch.no_grad():
        module.weight.fill_(2.0)
    average.update()  # the first step has decay 0.1
    with average.in_use():
        assert module.weight.tolist() == pytest.approx([1.9, 1.9])
    assert module.weight.tolist() == [2.0, 2.0]
