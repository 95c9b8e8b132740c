"""The street scenes, their task, and the training of its network, on a few made-up scenes and on the real ones."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from edgeopt.errors import DataError
from edgeopt.task import load_task
from edgeopt.tasks.ready import augment, camvid, camvid_segmentation
from edgeopt.tasks.ready.camvid_segmentation import CamVidSegmentation

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """Write two scenes of each part: a road under a sky, in their colours, with a stripe that is void."""
    for part in ("train", "val", "test"):
        for folder in (part, f"{part}annot"):
            (tmp_path / "camvid" / "CamVid" / folder).mkdir(parents=True)
        for index, horizon in enumerate((60, 110)):
            labels = np.full((180, 240), 3, np.uint8)
            labels[:horizon] = 0
            labels[:, :10] = camvid.VOID
            pixels = np.where(labels[..., None] == 0, (90, 160, 250), (120, 110, 100)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "camvid" / "CamVid" / part / f"{index}.png")
            Image.fromarray(labels).save(tmp_path / "camvid" / "CamVid" / f"{part}annot" / f"{index}.png")
    monkeypatch.setenv("EDGEOPT_DATA", str(tmp_path))
    camvid_segmentation.scene_tensors.cache_clear()
    yield tmp_path
    camvid_segmentation.scene_tensors.cache_clear()


def train_teacher():
    spec = importlib.util.spec_from_file_location("train_teacher_under_test", TOOLS / "train_teacher.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scenes_without_data_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEOPT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"fetch_data\.py DIR camvid"):
        camvid.load_scenes("train")


def test_a_task_without_its_network_says_how_to_train_it(scenes):
    with pytest.raises(Exception, match=r"train the network .* `python tools/train_teacher\.py camvid_segmentation`"):
        _ = load_task("camvid_segmentation").model


def test_damaged_scenes_are_named(scenes):
    wrong = scenes / "camvid" / "CamVid" / "trainannot" / "1.png"
    Image.fromarray(np.full((180, 240), 200, np.uint8)).save(wrong)
    with pytest.raises(DataError, match="a label is 200"):
        camvid.load_scenes("train")
    wrong.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"1\.png: cannot be read as an image"):
        camvid.load_scenes("train")
    Image.fromarray(np.zeros((90, 120), np.uint8)).save(wrong)
    with pytest.raises(DataError, match="is 120x90, not 240x180"):
        camvid.load_scenes("train")


def test_labels_move_with_their_pixels(scenes):
    images, labels = camvid_segmentation.scene_tensors("train")
    moved, moved_labels = augment.change_scenes(images, labels, torch.Generator().manual_seed(3))
    assert moved.shape == images.shape
    assert moved_labels.shape == labels.shape
    assert not torch.equal(moved_labels, labels)
    for image, label in zip(moved, moved_labels, strict=True):
        sky, road = (image[2][label == number].mean() for number in (0, 3))
        assert sky > road + 0.5  # the sky is bluer


def test_a_trained_network_knows_sky_from_road_and_void_does_not_count(scenes):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = CamVidSegmentation.make_network(0.5)
    task = CamVidSegmentation(lambda: model)
    best = train_teacher().train(task, epochs=25, rate=0.1, seed=0, device="cpu")
    assert best > 0.9
    inputs, labels = task.eval_batches()[0]
    logits = model.eval()(inputs).detach()
    wrong_in_void = torch.where((labels == camvid.VOID)[:, None], -logits, logits)
    assert task.score([(wrong_in_void.numpy(), labels.numpy())]) == pytest.approx(best)


def test_the_ready_task_loads_its_network_and_its_parts(scenes):
    (scenes / "teachers").mkdir()
    save_file(CamVidSegmentation.make_network().state_dict(), scenes / "teachers" / "camvid_segmentation.safetensors")
    task = load_task("camvid_segmentation")
    (images,) = task.example_inputs
    assert task.model(images).shape == (2, 11, 180, 240)
    assert task.score_kind.parts[0].metric == "miou"
    assert task.score_kind.parts[0].ignored == camvid.VOID


@pytest.mark.skipif(
    not (Path(os.environ.get("EDGEOPT_DATA", "/nowhere")) / "camvid" / "CamVid").is_dir(),
    reason="EDGEOPT_DATA has no street scenes",
)
def test_the_real_scenes_have_all_classes_in_each_part():
    for split, count in (("train", 367), ("selection", 101), ("test", 233)):
        images, labels = camvid.load_scenes(split)
        assert images.shape == (count, 3, 180, 240)
        assert set(np.unique(labels)) == set(range(12))
