"""The teacher's part of a training loss, by what an output is."""

import pytest
import torch
from torch.nn import functional

from edgeopt.passes.distill.losses import relative_error, soft_yes_loss, teacher_loss
from edgeopt.records.recipe import Distill
from edgeopt.records.scoring import OutputScore

STEP = Distill(
    epochs=1, optimizer="sgd", learning_rate=0.1, weight_decay=0.0, warmup_ratio=0.0, temperature=4.0, kl_weight=0.9,
    mse_weight=0.0, hard_weight=0.0,
)  # fmt: skip


def judged(layout, **options):
    return OutputScore(output="y", index=0, metric="accuracy", layout=layout, labels="outputs", **options)


def loss_of(part, output, teacher):
    return float(teacher_loss(STEP, part, output, teacher, None))


@pytest.mark.parametrize("axis", [1, 2])
def test_probabilities_of_classes_cost_what_their_logits_cost_on_either_axis(axis):
    generator = torch.Generator().manual_seed(0)
    output, teacher = torch.randn(2, 6, 5, 7, generator=generator)
    part = judged("classes", class_axis=axis)
    logits = loss_of(part, output, teacher)
    probabilities = loss_of(part, output.softmax(axis), teacher.softmax(axis))
    assert logits > 0.1
    assert probabilities == pytest.approx(logits, rel=1e-4)
    assert loss_of(part, teacher, teacher) == pytest.approx(0, abs=1e-6)


def test_sigmoids_cost_what_their_logits_cost():
    generator = torch.Generator().manual_seed(0)
    output, teacher = torch.randn(2, 64, 1, generator=generator) * 3
    logits = loss_of(judged("yes or no"), output, teacher)
    probabilities = loss_of(judged("yes or no", threshold=0.5), output.sigmoid(), teacher.sigmoid())
    assert logits > 0.1
    assert probabilities == pytest.approx(logits, rel=1e-3)
    assert loss_of(judged("yes or no"), teacher, teacher) == pytest.approx(0, abs=1e-6)


def test_saturated_probabilities_have_finite_losses_and_gradients():
    teacher = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    output = torch.tensor([[0.0], [1.0], [1.0], [0.0]], requires_grad=True)
    loss = teacher_loss(STEP, judged("yes or no", threshold=0.5), output, teacher, None)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(output.grad).all()


def test_a_rare_answer_weighs_as_much_as_the_other():
    """A student that always says no loses half of what it could, though only one sample in fifty is a yes."""
    teacher = torch.full((50, 1), -6.0)
    teacher[0] = 6.0
    always_no, always_yes = torch.full_like(teacher, -6.0), torch.full_like(teacher, 6.0)
    balanced = [float(soft_yes_loss(output, teacher, 1.0, yes_ratio=0.02)) for output in (always_no, always_yes)]
    plain = [float(soft_yes_loss(output, teacher, 1.0)) for output in (always_no, always_yes)]
    assert balanced[0] == pytest.approx(balanced[1], rel=1e-4)
    assert plain[1] / plain[0] == pytest.approx(49, rel=1e-3)


def test_columns_in_other_units_count_alike():
    teacher = torch.tensor([[1.0, 1000.0], [-1.0, 3000.0]])
    output = teacher * 1.1
    assert float(relative_error(output, teacher, 1)) == pytest.approx(0.01, rel=1e-4)
    only_small = torch.stack([teacher[:, 0] * 1.1, teacher[:, 1]], 1)
    by_column = loss_of(judged("values", scales=(1.0, 2000.0)), only_small, teacher)
    assert by_column == pytest.approx(0.9 * 0.005, rel=1e-4)
    assert loss_of(judged("values", scales=(1.0,)), only_small, teacher) < 1e-6


def test_boxes_count_where_something_is_detected():
    generator = torch.Generator().manual_seed(0)
    places, scores = torch.rand(2, 4, 30, generator=generator) * 100, torch.full((2, 3, 30), 1e-4)
    scores[:, 1, 0] = 0.9
    teacher = torch.cat([places, scores], 1)
    part = judged("boxes", class_axis=1)
    moved, elsewhere, unseen = teacher.clone(), teacher.clone(), teacher.clone()
    moved[:, 0, 0] += 20
    elsewhere[:, 0, 1] += 20
    unseen[:, 1, 0] = 0.01
    assert loss_of(part, teacher, teacher) == pytest.approx(0, abs=1e-6)
    assert loss_of(part, moved, teacher) > 100 * loss_of(part, elsewhere, teacher)
    assert loss_of(part, unseen, teacher) > loss_of(part, elsewhere, teacher)


def test_an_output_that_nothing_is_known_of_is_compared_as_numbers():
    output, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    expected = 0.9 * functional.mse_loss(output, teacher) / teacher.square().mean()
    assert loss_of(None, output, teacher) == pytest.approx(float(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saturated_probabilities_of_16_bits_have_finite_losses(dtype):
    """As mixed precision gives them: the largest number below 1 is too near to it for the limit of a probability."""
    teacher = torch.tensor([[1.0], [0.0]], dtype=dtype)
    output = torch.tensor([[0.0], [1.0]], dtype=dtype, requires_grad=True)
    parts = judged("yes or no", threshold=0.5), judged("classes")
    for part, given, found in ((parts[0], teacher, output), (parts[1], teacher[:, 0][None], output[:, 0][None])):
        loss = teacher_loss(STEP, part, found, given, None)
        (gradient,) = torch.autograd.grad(loss, output)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
