"""The guides to detection, segmentation, regression and streams: their code runs from the data to a pruned file."""

import numpy as np
import pytest
import torch
from guide_code import guide_project
from walking import score_of, walk

import edgeopt
from edgeopt.task import CheckedTask, load_task


def test_a_detector_with_lists_of_dicts(tmp_path):
    with guide_project("detection", tmp_path, my_detector="detector"):
        import my_detector

        my_detector.train()
        task = load_task(f"{tmp_path / 'my_task.py'}:task")
        assert task.output_names == ("logits", "boxes")
        inputs, targets = next(iter(task.eval_batches()))
        assert inputs[0].shape == (16, 3, 24, 24)
        assert len({len(target["boxes"]) for target in targets}) > 1  # of uneven length
        assert walk(task, tmp_path) > 0.6


def test_the_mean_average_precision_of_the_guide_counts_each_box_once(tmp_path):
    with guide_project("detection", tmp_path, my_detector="detector"):
        import my_task

        box, other = [0, 0, 8, 8], [16, 16, 24, 24]
        truth = [{"boxes": np.array([box, other]), "labels": np.array([0, 0])}]

        def found(boxes):
            return [{"boxes": np.array(boxes), "scores": np.arange(len(boxes), 0, -1), "labels": np.zeros(len(boxes))}]

        assert my_task.mean_average_precision(found([box, other]), truth) == 1
        assert my_task.mean_average_precision(found([box, box]), truth) == 0.5
        assert my_task.mean_average_precision(found([[40, 40, 44, 44], box]), truth) == 0.25
        none = [{"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0)}]
        assert my_task.mean_average_precision(none, truth) == 0


def test_segmentation_ignores_a_class_and_takes_any_size(tmp_path):
    with guide_project("segmentation", tmp_path, my_project="streets"):
        task = load_task(f"{tmp_path / 'my_task.py'}:task")
        assert {inputs[0].shape[2:] for inputs, _ in task.eval_batches()} == {(24, 32), (32, 24)}
        masks = np.array([[[0, 1], [255, 1]]])
        logits = np.zeros((1, 4, 2, 2))
        logits[0, 1, :, 1] = logits[0, 2, 1, 0] = 1  # wrong only at the ignored pixel
        assert task.score([(logits, masks)]) == 1
        assert walk(task, tmp_path) > 0.6
        pairs = [(np.random.default_rng(0).random((2, 4, 5, 5)), np.random.default_rng(1).integers(0, 4, (2, 5, 5)))]
        assert task.score_statistics(task.sample_statistics(pairs).sum(0)) == task.score(pairs)


def test_regression_is_scored_in_the_unit_of_its_values(tmp_path):
    with guide_project("regression", tmp_path, my_project="power"):
        import my_project

        task = load_task(f"{tmp_path / 'my_task.py'}:task")
        assert walk(task, tmp_path) < 0.2 * float(my_project.target_scale.mean())
        perfect = [
            (((values - my_project.target_mean) / my_project.target_scale).numpy(), values.numpy())
            for _, values in my_project.val_loader
        ]
        assert task.score(perfect) < 1e-3
        assert task.score_direction == "lower"


def test_regression_in_the_unit_of_the_targets_is_one_call(tmp_path):
    with guide_project("regression", tmp_path, my_project="power"):
        import my_project

        class Scaled(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = my_project.load_model()

            def forward(self, x):
                return self.inner(x) * my_project.target_scale + my_project.target_mean

        call = edgeopt.regression(Scaled, my_project.train_loader, my_project.val_loader)
        task, own = CheckedTask(call, "tests"), load_task(f"{tmp_path / 'my_task.py'}:task")
        assert score_of(task)[0] == pytest.approx(score_of(own)[0], rel=1e-4)


def test_a_stream_keeps_its_state(tmp_path):
    with guide_project("dynamic-sizes", tmp_path, my_project="keywords"):
        import my_project

        my_project.train()
        task = load_task(f"{tmp_path / 'my_task.py'}:task")
        assert (task.axes.inputs, task.axes.outputs) == ((0, 0, 1), (0, 0, 1))
        assert score_of(task)[0] > 0.8
        features, _ = my_project.val_set[0]
        with torch.no_grad():
            whole, *_ = task.model(features, *task.model.first_state(32))
            _, *state = task.model(features[:, :, :12], *task.model.first_state(32))
            rest, *_ = task.model(features[:, :, 12:], *state)
        assert torch.allclose(whole, rest, atol=1e-5)
        walk(task, tmp_path, exporter="torchscript")
