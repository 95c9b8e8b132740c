"""Boxes in street scenes: from the classes of pixels, through changes of the scenes, to the training of a detector."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytest.importorskip("faster_coco_eval")

from edgeopt.task import load_task
from edgeopt.tasks.ready import camvid_detection, camvid_segmentation
from edgeopt.tasks.ready.camvid_detection import MIN_OBJECT_AREA, CamVidDetection
from edgeopt.tasks.ready.regions import find_boxes

TOOLS = Path(__file__).parents[2] / "tools"
CAR, PEDESTRIAN, ROAD = 8, 9, 3
HAS_SCENES = (Path(os.environ.get("EDGEOPT_DATA", "/nowhere")) / "camvid" / "CamVid").is_dir()


def test_each_connected_region_of_a_class_is_a_box_and_a_small_one_a_crowd():
    labels = np.full((20, 30), ROAD)
    labels[2:6, 3:9] = CAR
    labels[6:8, 9:12] = CAR  # touches at a corner
    labels[10:18, 20:22] = PEDESTRIAN
    labels[0, 29] = PEDESTRIAN
    found = find_boxes(labels, (CAR, PEDESTRIAN), min_area=10)
    assert found["boxes"].tolist() == [[3, 2, 12, 8], [29, 0, 30, 1], [20, 10, 22, 18]]
    assert found["labels"].tolist() == [0, 1, 1]
    assert found["iscrowd"].tolist() == [False, True, False]
    empty = find_boxes(np.full((20, 30), ROAD), (CAR, PEDESTRIAN), min_area=10)
    assert [tuple(value.shape) for value in empty.values()] == [(0, 4), (0,), (0,)]


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """Write four scenes of each part: blue cars and red pedestrians on a grey road."""
    rng = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for folder in (part, f"{part}annot"):
            (tmp_path / "camvid" / "CamVid" / folder).mkdir(parents=True)
        for index in range(4):
            labels = np.full((180, 240), ROAD, np.uint8)
            left = 10 + 20 * index
            labels[100:140, left : left + 60] = CAR
            labels[60:110, 180 + 5 * index : 195 + 5 * index] = PEDESTRIAN
            labels[20:25, 200:205] = PEDESTRIAN  # too small
            colours = np.zeros((12, 3), np.int64) + 110
            colours[CAR], colours[PEDESTRIAN] = (20, 40, 230), (230, 30, 30)
            pixels = (colours[labels] + rng.integers(-20, 20, (180, 240, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "camvid" / "CamVid" / part / f"{index}.png")
            Image.fromarray(labels).save(tmp_path / "camvid" / "CamVid" / f"{part}annot" / f"{index}.png")
    monkeypatch.setenv("EDGEOPT_DATA", str(tmp_path))
    forget_scenes()
    yield tmp_path
    forget_scenes()


def forget_scenes():
    camvid_segmentation.scene_tensors.cache_clear()
    camvid_detection.scene_boxes.cache_clear()


def train_teacher():
    spec = importlib.util.spec_from_file_location("train_teacher_of_boxes", TOOLS / "train_teacher.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_boxes_move_with_the_scene_and_are_the_same_for_the_same_seed(scenes):
    (images, targets), *_ = CamVidDetection.draw_epoch(3)
    (again, same), *_ = CamVidDetection.draw_epoch(3)
    assert torch.equal(images, again)
    for image, target, other in zip(images, targets, same, strict=True):
        assert torch.equal(target["boxes"], other["boxes"])
        for (left, top, right, bottom), label in zip(target["boxes"].int().tolist(), target["labels"], strict=True):
            inside = image[:, top:bottom, left:right].mean((1, 2))
            assert inside.argmax() == (2, 0)[label]  # cars are blue, pedestrians red


def test_a_detector_learns_the_scenes_by_the_tool_and_the_ready_task_loads_it(scenes):
    torch.set_num_threads(1)
    tool = train_teacher()
    torch.manual_seed(0)
    model = CamVidDetection.make_network(0.25)
    task = CamVidDetection(lambda: model)
    assert tool.train(task, epochs=40, rate=0.01, seed=0, device="cpu") > 0.3
    (scenes / "teachers").mkdir()
    save_file(CamVidDetection.make_network().state_dict(), scenes / "teachers" / "camvid_detection.safetensors")
    ready = load_task("camvid_detection")
    assert ready.output_names == ("heatmap", "sides")
    with torch.no_grad():
        heatmap, sides = ready.model(*ready.example_inputs).values()
    assert heatmap.shape == (4, 2, 45, 60)
    assert sides.shape == (4, 4, 45, 60)
    assert ready.labels == ("car", "pedestrian")
    assert {len(target["boxes"]) for _, targets in ready.eval_batches() for target in targets} == {3}


def test_networks_whose_gradient_crashes_in_channels_last_memory_are_trained_without_it():
    tool = train_teacher()
    assert tool.find_layout(CamVidDetection.make_network()) == torch.channels_last
    assert tool.find_layout(CamVidDetection.make_network(0.3)) == torch.contiguous_format


@pytest.mark.skipif(not HAS_SCENES, reason="EDGEOPT_DATA has no street scenes")
def test_the_real_scenes_have_cars_and_pedestrians_in_each_part():
    forget_scenes()
    for part, cars, pedestrians in (("train", 853, 428), ("selection", 122, 127), ("test", 265, 270)):
        boxes = camvid_detection.scene_boxes(part)
        labels = torch.cat([one["labels"][~one["iscrowd"]] for one in boxes])
        assert torch.bincount(labels).tolist() == [cars, pedestrians]
        sizes = torch.cat([(one["boxes"][:, 2:] - one["boxes"][:, :2])[~one["iscrowd"]] for one in boxes])
        assert (sizes.prod(1) >= MIN_OBJECT_AREA).all()
    forget_scenes()
