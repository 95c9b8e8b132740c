"""Tasks of detectors: boxes from maps, losses, targets in the forms that loaders give, and what is refused."""

import importlib.util

import numpy as np
import pytest
import torch

pytest.importorskip("faster_coco_eval")

from box_scenes import HEIGHT, WIDTH, batches, draw_scene, learn, score_of, tiny_detector

import edgeopt
from edgeopt.errors import DataError, TaskError
from edgeopt.passes.distill.parts import TaughtBatch, split_samples
from edgeopt.task import CheckedTask
from edgeopt.task.values import to_numpy
from edgeopt.tasks.detection import find_stride
from edgeopt.tasks.detection_losses import detection_distill_loss, detection_loss, draw_gaussians, generalized_overlap
from edgeopt.tasks.peaks import MAX_PEAKS, SHOWN_SCORE, decode_peaks

STRIDE = 4
BOX_ERROR = 1e-3  # pixels, of float32 logarithms and exponentials


def maps_of(targets, size=(12, 16), classes=2):
    """Return the heat-map and the sides from which a decoder reads exactly these boxes."""
    heatmap = np.full((len(targets), classes, *size), -8, np.float32)
    sides = np.zeros((len(targets), 4, *size), np.float32)
    for image, target in enumerate(targets):
        boxes = np.asarray(target["boxes"])
        gaussians = draw_gaussians(torch.as_tensor(boxes, dtype=torch.float32), size, STRIDE).numpy()
        for box, label, gaussian in zip(boxes, target["labels"], gaussians, strict=True):
            heatmap[image, label] = np.maximum(heatmap[image, label], 16 * gaussian - 8)
            row, column = np.unravel_index(gaussian.argmax(), size)
            x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
            sides[image, :, row, column] = np.log(np.array([x - box[0], y - box[1], box[2] - x, box[3] - y]) / STRIDE)
    return heatmap, sides


def scenes(count):
    return [draw_scene(seed) for seed in range(count)]


def test_maps_that_were_drawn_from_boxes_give_these_boxes():
    targets = [target for _, target in scenes(20)]
    found = decode_peaks(*maps_of(targets), STRIDE)
    for boxes, target in zip(found, targets, strict=True):
        assert len(boxes["labels"]) == len(target["labels"])
        mine = boxes["boxes"][np.lexsort(boxes["boxes"].T)]
        theirs = target["boxes"].numpy()[np.lexsort(target["boxes"].numpy().T)]
        assert np.allclose(mine, theirs, atol=BOX_ERROR)


def test_a_flat_peak_is_one_object_and_the_highest_peaks_are_kept():
    heatmap = np.full((1, 1, 12, 16), -8.0)
    heatmap[0, 0, 3:5, 6:9] = 2  # as int8 rounds it
    (found,) = decode_peaks(heatmap, np.zeros((1, 4, 12, 16)), STRIDE)
    assert found["boxes"].tolist() == [[22, 10, 30, 18]]
    many = np.full((1, 1, 64, 64), -8.0)
    many[0, 0, ::2, ::2] = np.linspace(-2, 2, 32 * 32).reshape(32, 32)
    (found,) = decode_peaks(many, np.zeros((1, 4, 64, 64)), STRIDE)
    assert len(found["scores"]) == MAX_PEAKS
    assert (np.diff(found["scores"]) <= 0).all()
    assert found["scores"][0] == pytest.approx(1 / (1 + np.exp(-2)))
    (none,) = decode_peaks(np.full((1, 1, 4, 4), np.nan), np.zeros((1, 4, 4, 4)), STRIDE)
    assert none["boxes"].shape == (0, 4)


def test_the_loss_is_lowest_for_the_right_maps_and_boxes_count():
    targets = [target for _, target in scenes(6)]
    heatmap, sides = map(torch.from_numpy, maps_of(targets))
    right = detection_loss(heatmap, sides, targets, STRIDE)
    assert right < detection_loss(heatmap, sides + 0.5, targets, STRIDE)
    assert right < detection_loss(heatmap.flip(-1), sides, targets, STRIDE)
    assert right < detection_loss(heatmap.flip(1), sides, targets, STRIDE)


def test_the_generalized_overlap_of_known_boxes():
    box = torch.tensor([[0.0, 0, 2, 2]])
    assert generalized_overlap(box, box).item() == 1
    assert generalized_overlap(box, torch.tensor([[1.0, 0, 3, 2]])).item() == pytest.approx(1 / 3)
    assert generalized_overlap(box, torch.tensor([[4.0, 0, 6, 2]])).item() == pytest.approx(-1 / 3)


def test_images_without_boxes_and_crowds_have_a_loss_with_gradients():
    heatmap = torch.zeros(2, 2, 12, 16, requires_grad=True)
    sides = torch.zeros(2, 4, 12, 16, requires_grad=True)
    crowd = {"boxes": torch.tensor([[0.0, 0, 64, 48]]), "labels": torch.tensor([1]), "iscrowd": torch.tensor([1])}
    detection_loss(heatmap, sides, [{"boxes": [], "labels": []}, crowd], STRIDE).backward()
    assert sides.grad is not None
    assert (heatmap.grad[0] > 0).all()  # background
    assert (heatmap.grad[1, 0] > 0).all()
    assert (heatmap.grad[1, 1] == 0).all()  # neither


def test_two_objects_in_one_place_leave_it_to_the_smaller_one():
    big, small = [4.0, 4, 60, 44], [30.0, 22, 36, 28]
    targets = [{"boxes": torch.tensor([big, small]), "labels": torch.tensor([0, 1])}]
    heatmap, _ = map(torch.from_numpy, maps_of(targets))
    sides = torch.zeros(1, 4, 12, 16, requires_grad=True)
    loss = detection_loss(heatmap, sides, targets, STRIDE)
    loss.backward()
    row, column = 6, 8  # the centre of the small box
    assert sides.grad[0, :, row, column].abs().sum() > 0
    alone = torch.zeros(1, 4, 12, 16, requires_grad=True)
    only = [{"boxes": torch.tensor([small]), "labels": torch.tensor([1])}]
    detection_loss(heatmap, alone, only, STRIDE).backward()
    assert torch.allclose(sides.grad[0, :, row, column] * 2, alone.grad[0, :, row, column])  # of two objects


def test_the_loss_against_a_teacher_is_zero_for_its_own_outputs():
    targets = [target for _, target in scenes(4)]
    heatmap, sides = map(torch.from_numpy, maps_of(targets))
    assert detection_distill_loss(heatmap, sides, heatmap, sides).item() == pytest.approx(0, abs=1e-6)
    certain = heatmap.amax(1, keepdim=True) > 0
    near, far = (detection_distill_loss(heatmap, sides + 0.5 * part, heatmap, sides) for part in (certain, ~certain))
    assert near > 100 * far  # where the teacher sees nothing, boxes are free
    assert detection_distill_loss(heatmap.flip(-1), sides, heatmap, sides) > 0.1


def test_a_detector_and_its_student_learn_made_up_scenes():
    torch.set_num_threads(1)
    train, val = batches(0, 96), batches(1000, 48)
    model = tiny_detector()
    task = edgeopt.detection(model, train, val)
    assert score_of(model, task) < 0.1
    losses = learn(model, task, epochs=12)
    assert losses[-1] < 0.5 * losses[0]
    assert score_of(model, task) > 0.7
    task.training = edgeopt.Training(kl_weight=1, hard_weight=0)
    student = tiny_detector()
    learn(student, task, epochs=6, teacher=model)
    assert score_of(student, task) > 0.6  # from the teacher's outputs alone


def test_lists_of_images_and_ragged_targets_go_through_the_engine():
    task = CheckedTask(edgeopt.detection(tiny_detector(), batches(0, 20), batches(100, 20)), "tests")
    assert task.output_names == ("heatmap", "sides")
    assert task.example_inputs[0].shape == (8, 3, HEIGHT, WIDTH)
    assert task.train_length(0) == 3
    inputs, targets = next(task.train_epoch(0))
    assert inputs[0].shape == (8, 3, HEIGHT, WIDTH)
    assert len({len(target["boxes"]) for target in targets}) > 1  # of uneven length
    with torch.no_grad():
        outputs = tuple(task.model(*inputs).values())
    parts = split_samples(TaughtBatch(inputs, targets, outputs), task.axes, 2)
    assert [len(part.targets) for part, _ in parts] == [4, 4]
    assert torch.isfinite(task.loss(outputs, targets))
    assert task.distill_loss(outputs, outputs, targets) < task.loss(outputs, targets)
    pairs = [(task.nest_outputs([one.numpy() for one in outputs]), to_numpy(targets))]
    assert task.sample_scores(pairs) is None
    assert task.score_rows(task.sample_statistics(pairs)) == pytest.approx(task.score(pairs))
    assert "in steps of 4 pixels" in task.postprocessing


class Points(torch.nn.Module):
    """A detector of another form: for each image three boxes and the logits of their classes."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, 8), torch.nn.Flatten(), torch.nn.LazyLinear(3 * 6))
        self.inner(torch.zeros(1, 3, HEIGHT, WIDTH))

    def forward(self, images):
        return self.inner(images).reshape(len(images), 3, 6)


def test_outputs_of_another_form_are_read_by_the_users_own_functions():
    def decode(outputs):
        return [{"boxes": one[:, :4], "scores": one[:, 4:].max(1), "labels": one[:, 4:].argmax(1)} for one in outputs]

    def loss(outputs, targets):
        return outputs.square().mean()

    task = edgeopt.detection(Points, batches(0, 8), batches(0, 8), decode=decode, loss=loss)
    checked = CheckedTask(task, "tests")
    _, targets = next(iter(task.eval_batches()))
    found = np.full((8, 3, 6), -1.0)
    for row, target in zip(found, targets, strict=True):
        for place, (box, label) in enumerate(zip(target["boxes"], target["labels"], strict=True)):
            row[place, :4], row[place, 4 + label] = box, 1
    assert checked.score([(found, to_numpy(targets))]) == pytest.approx(1)
    assert checked.distill_loss(torch.zeros(8, 3, 6), torch.zeros(8, 3, 6), targets) is None
    with pytest.raises(TaskError, match="so the loss has to be your own"):
        edgeopt.detection(Points, batches(0, 8), batches(0, 8), decode=decode)
    for wrong in (lambda outputs: [{}] * 8, lambda outputs: outputs, lambda outputs: decode(outputs)[:3]):
        task = edgeopt.detection(Points, batches(0, 8), batches(0, 8), decode=wrong, loss=loss)
        with pytest.raises(TaskError, match=r"decode\(\) returns .* a dict of boxes"):
            task.score([(found, targets)])
    with pytest.raises(TaskError, match=r"array 8x3x6.*a heat-map"):
        CheckedTask(edgeopt.detection(Points, batches(0, 8), batches(0, 8)), "tests").score([(found, targets)])


def test_only_a_task_whose_boxes_are_peaks_tells_apps_how_to_read_them():
    task = edgeopt.detection(tiny_detector(), batches(0, 8), batches(0, 8), min_score=0.5)
    assert (task.reads_maps, task.min_score) == (True, 0.5)
    assert edgeopt.detection(tiny_detector(), batches(0, 8), batches(0, 8)).min_score == SHOWN_SCORE
    own = {"decode": lambda outputs: [], "loss": lambda outputs, targets: outputs.mean()}
    assert not edgeopt.detection(Points, batches(0, 8), batches(0, 8), **own).reads_maps
    for wrong in (0, 1, 30):
        with pytest.raises(TaskError, match=f"min_score is {wrong}, but .* is between 0 and 1"):
            edgeopt.detection(tiny_detector(), batches(0, 8), batches(0, 8), min_score=wrong)


def test_the_stride_follows_from_the_sizes_or_is_asked_for():
    assert find_stride((180, 240), (45, 60), "t") == 4
    assert find_stride((180, 240), (23, 30), "t") == 8  # rounded up
    assert find_stride((180, 240), (22, 30), "t") == 8  # rounded down
    assert find_stride((90, 120), (30, 40), "t") == 3
    for places in ((1, 1), (45, 30)):
        with pytest.raises(TaskError, match="Give stride=N"):
            find_stride((180, 240), places, "t")


def changed(target):
    images, targets = batches(0, 8)[0]
    return [(images, [target, *targets[1:]])]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"boxes": [[1, 1, 9, 9]]}, "image 0 has no 'labels', but boxes"),
        ({"boxes": [[1, 1, 9, 9]], "labels": [0, 1]}, r"shape \(1, 4\) and labels of shape \(2,\)"),
        ({"boxes": [[20, 20, 8, 8]], "labels": [0]}, r"for \(left, top, width, height\) add"),
        ({"boxes": [[1, 1, np.nan, 9]], "labels": [0]}, "nan"),
        ({"boxes": [[1, 1, 9, 9]], "labels": [2]}, "2 classes, 0 to 1.*background"),
        ({"boxes": [[1, 1, 9, 9]], "labels": [0], "iscrowd": [0, 0]}, "1 boxes, but 2 'iscrowd'"),
        ({"boxes": [[100, 40, 180, 60]], "labels": [0]}, "centre is outside of the image of 64x48"),
    ],
)
def test_wrong_targets_are_named(target, message):
    task = edgeopt.detection(tiny_detector(), changed(target), changed(target))
    images, targets = next(iter(task.eval_batches()))
    outputs = tiny_detector()(images)
    with pytest.raises(DataError, match=message):
        task.loss(outputs, targets)
    with pytest.raises(DataError, match=message):
        task.score([({name: one.detach().numpy() for name, one in outputs.items()}, targets)])


def test_relative_boxes_other_targets_and_images_of_several_sizes_are_refused():
    images, targets = batches(0, 8)[0]
    relative = [{**one, "boxes": one["boxes"] / 64} for one in targets]
    task = edgeopt.detection(tiny_detector(), [(images, relative)], [(images, relative)])
    with pytest.raises(DataError, match="relative to the image"):
        task.loss(tiny_detector()(torch.stack(images)), relative)
    task = edgeopt.detection(tiny_detector(), batches(0, 8), [(torch.stack(images), torch.zeros(8, 4))])
    with pytest.raises(DataError, match="eval yields targets tensor 8x4"):
        task.example_inputs()
    outputs = {"heatmap": np.zeros((8, 2, 12, 16)), "sides": np.zeros((8, 4, 12, 16))}
    task = edgeopt.detection(tiny_detector(), batches(0, 8), batches(0, 8))
    with pytest.raises(DataError, match="none of the 8 evaluation images has a box"):
        task.score([(outputs, [{"boxes": [], "labels": []}] * 8)])
    uneven = [(torch.zeros(3, 40, 40), *images[1:])]
    task = edgeopt.detection(tiny_detector(), [(uneven[0], targets)], batches(0, 8))
    with pytest.raises(DataError, match="images of different sizes"):
        next(iter(task.train_batches(0)))
    with pytest.raises(TaskError, match="can be iterated only once"):
        edgeopt.detection(tiny_detector(), iter(batches(0, 8)), batches(0, 8))


def test_without_the_library_one_sentence_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faster_coco_eval" else find(name))
    with pytest.raises(TaskError, match="pip install faster-coco-eval"):
        edgeopt.detection(tiny_detector(), batches(0, 8), batches(0, 8))
