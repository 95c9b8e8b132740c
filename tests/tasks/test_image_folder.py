"""`edgeopt.image_folder`: which image is for what, how it becomes numbers, and that a network learns from it."""

import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import edgeopt
from edgeopt.errors import DataError, InputError, TaskError
from edgeopt.task import CheckedTask
from edgeopt.tasks.class_folders import find_class_folders
from edgeopt.tasks.name_hash import hash_percent
from edgeopt.tasks.ready import camvid, fashion_mnist

SIDE = 8


class Net(nn.Module):
    def __init__(self, channels=3, classes=2):
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, 2, 1)
        self.norm = nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 32, 3, 2, 1)
        self.head = nn.Linear(128, classes)

    def forward(self, x):
        y = torch.relu(self.last(torch.relu(self.norm(self.conv(x)))))
        return self.head(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))


def write(path, value, size=(SIDE, SIDE)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


@pytest.fixture
def parts(tmp_path):
    """Write a folder with dark and bright images in three parts; the value of a pixel tells the image."""
    for part, count in (("train", 10), ("val", 4), ("test", 3)):
        for label, name in enumerate(("bright", "dark")):
            for index in range(count):
                write(tmp_path / part / name / f"{index}.png", (1 - label) * 200 + index)
    return tmp_path


@pytest.fixture
def classes_only(tmp_path):
    for name in ("a", "b"):
        for index in range(200):
            write(tmp_path / name / f"{name}{index}.png", index % 200)
    return tmp_path


def values(batches):
    return sorted(round(float(images.mean()) * 255) for batch, _ in batches for images in batch)


def test_subfolders_say_what_an_image_is_for(parts):
    task = edgeopt.image_folder(Net(), parts, size=SIDE, flip=False, crop=False, batch_size=4)
    assert task.labels == ("bright", "dark")
    assert values(task.draw_epoch(0)) == sorted([*range(200, 210), *range(10)])
    assert values(task.eval_batches()) == sorted([*range(200, 204), *range(4)])
    assert values(task.test_batches()) == sorted([*range(200, 203), *range(3)])
    for images, labels in task.draw_epoch(1):
        assert images.shape[1:] == (3, SIDE, SIDE)
        assert torch.equal(labels, (images.mean((1, 2, 3)) < 0.5).long())


def test_a_single_image_is_no_batch_that_trains(parts):
    task = edgeopt.image_folder(Net(), parts, size=SIDE, batch_size=19)
    assert [len(labels) for _, labels in task.draw_epoch(0)] == [19]
    assert sum(len(labels) for _, labels in task.eval_batches()) == 8


def test_without_parts_a_hash_of_the_name_decides_and_new_files_move_no_other(classes_only):
    before = find_class_folders(classes_only).parts
    counts = {part: len(files) for part, files in before.items()}
    assert sum(counts.values()) == 400
    assert 30 < counts["selection"] < 90
    assert 30 < counts["test"] < 90
    for index in range(200, 260):
        write(classes_only / "a" / f"a{index}.png", 0)
    after = find_class_folders(classes_only).parts
    assert all(set(before[part]) <= set(after[part]) for part in before)
    every = [file.path for files in after.values() for file in files]
    assert len(set(every)) == len(every) == 460


def test_the_split_is_the_same_on_every_machine(tmp_path):
    for index in range(40):
        write(tmp_path / "a" / f"{index}.png", 0)
        write(tmp_path / "b" / f"{index}.png", 0)
    found = find_class_folders(tmp_path).parts
    for part, expected in (("test", [11, 18, 26, 27, 34, 39]), ("selection", [8, 17, 21, 35, 38])):
        assert sorted(int(one.path.stem) for one in found[part] if one.label == 0) == expected
        assert sorted(int(one.path.stem) for one in found[part] if one.label == 1) == expected
    composed, decomposed = (unicodedata.normalize(form, "été.png") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert hash_percent(composed) == hash_percent(decomposed)


def test_a_class_of_trains_is_a_class(tmp_path):
    for name in ("car", "train", "test"):
        for index in range(40):
            write(tmp_path / name / f"{name}{index}.png", 0)
    assert find_class_folders(tmp_path).classes == ("car", "test", "train")


def test_without_a_folder_that_selects_some_training_images_do(classes_only):
    for name in ("a", "b"):
        (classes_only / "train").mkdir(exist_ok=True)
        (classes_only / name).rename(classes_only / "train" / name)
    found = find_class_folders(classes_only).parts
    assert (len(found["test"]), sum(map(len, found.values()))) == (0, 400)
    assert 30 < len(found["selection"]) < 90
    assert edgeopt.image_folder(Net(), classes_only, size=SIDE).test_batches() is None


def test_hidden_and_other_files_do_not_count(parts):
    (parts / "train" / "dark" / "notes.txt").write_text("no image")
    write(parts / "train" / "dark" / ".thumbs" / "1.png", 0)
    write(parts / "train" / "dark" / "more" / "2.png", 9)
    (parts / "train" / ".cache").mkdir()
    assert len(find_class_folders(parts).parts["train"]) == 21


def test_settings_become_numbers_and_the_sentence_of_the_bundle(parts):
    task = edgeopt.image_folder(
        Net(1), parts, size=(6, 4), resize="stretch", mean=0.5, std=0.25, color="gray", flip=False, crop=False
    )
    images, _ = next(task.eval_batches())
    assert images.shape[1:] == (1, 6, 4)
    assert float(images[0, 0, 0, 0]) == pytest.approx((200 / 255 - 0.5) / 0.25)
    assert task.preprocessing.text == (
        "grey image, upright, resized to 4x6 (bilinear), pixels of 0 to 1 less 0.5, divided by 0.25, shape "
        "(batch, 1, 6, 4), float32"
    )
    Image.fromarray(np.full((4, 4, 3), (30, 20, 10), np.uint8)).save(parts / "val" / "bright" / "0.png")
    bgr = edgeopt.image_folder(Net(), parts, size=4, mean=(1.5, 0, 0), color="bgr")
    assert next(bgr.eval_batches())[0][0, :, 0, 0].tolist() == [8.5, 20, 30]


def test_random_changes_follow_the_seed_and_can_be_turned_off(parts):
    half = np.zeros((SIDE, SIDE, 3), np.uint8)
    half[:, : SIDE // 2] = 255
    for path in (parts / "train").rglob("*.png"):
        Image.fromarray(half).save(path)

    def drawn(seed, **options):
        return torch.cat(
            [batch for batch, _ in edgeopt.image_folder(Net(), parts, size=SIDE, **options).draw_epoch(seed)]
        )

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    assert torch.equal(drawn(3, flip=False, crop=False), drawn(4, flip=False, crop=False))
    left = drawn(0, crop=False)[:, 0, 0, 0] > 0.5
    assert 0 < left.sum() < len(left)
    assert (drawn(0, flip=False)[:, 0, 0, 0] > 0.5).all()


def test_images_are_decoded_once_if_they_fit_into_the_memory_that_was_said(parts, monkeypatch):
    from edgeopt.tasks import image_folder as module

    read = []
    monkeypatch.setattr(module, "read_image", lambda *args, real=module.read_image: read.append(args[0]) or real(*args))
    for memory, expected in ((1024, 20), (0.001, 40)):
        read.clear()
        task = edgeopt.image_folder(Net(), parts, size=SIDE, memory_mb=memory, flip=False, crop=False)
        assert not read
        first, second = (list(task.draw_epoch(0)) for _ in range(2))
        assert len(read) == expected
        assert all(torch.equal(one[0], other[0]) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0; it has to be a number of pixels"),
        ({"size": (8, 8, 3)}, r"size is \(8, 8, 3\)"),
        ({"resize": "fit"}, "resize is 'fit'; it has to be one of crop, stretch, pad"),
        ({"crop_ratio": 0.5, "resize": "pad"}, "crop_ratio is 0.5"),
        ({"color": "grey"}, "color is 'grey'; it has to be one of rgb, bgr, gray"),
        ({"mean": (0.1, 0.2)}, "mean has 2 numbers; give one, or 3"),
        ({"std": 0}, "std has a zero"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"classes": ("dark", "light")}, r"'bright' is not one of the 2 classes.*classes="),
    ],
)
def test_what_is_not_known_is_refused(parts, options, message):
    with pytest.raises((DataError, TaskError, InputError), match=message):
        edgeopt.image_folder(Net(), parts, **({"size": SIDE} | options))


def test_folders_that_cannot_train_are_refused_with_advice(tmp_path, parts):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        edgeopt.image_folder(Net(), tmp_path / "nowhere", size=SIDE)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has too few images by class: 0 for train.*Known: \.bmp"):
        edgeopt.image_folder(Net(), tmp_path / "empty", size=SIDE)
    write(tmp_path / "one" / "train" / "a" / "1.png", 0)
    write(tmp_path / "one" / "val" / "a" / "2.png", 0)
    with pytest.raises(DataError, match="has only the class 'a'"):
        edgeopt.image_folder(Net(), tmp_path / "one", size=SIDE)
    write(parts / "val" / "drak" / "1.png", 0)
    with pytest.raises(DataError, match=r"'drak' is not one of the 2 classes \(did you mean 'dark'\?\)"):
        edgeopt.image_folder(Net(), parts, size=SIDE)
    write(tmp_path / "late" / "val" / "a" / "1.png", 0)
    with pytest.raises(DataError, match=r"has val/CLASS, but no train/CLASS"):
        edgeopt.image_folder(Net(), tmp_path / "late", size=SIDE)


def test_a_damaged_image_is_named_when_it_is_read(parts):
    (parts / "val" / "dark" / "1.png").write_bytes(b"damaged")
    task = edgeopt.image_folder(Net(), parts, size=SIDE)
    with pytest.raises(DataError, match=r"val/dark/1\.png cannot be read as an image"):
        list(task.eval_batches())


def test_without_pillow_it_says_what_to_install(parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match="takes Pillow: pip install pillow"):
        edgeopt.image_folder(Net(), parts, size=SIDE)


def test_a_network_with_other_classes_is_refused(parts):
    with pytest.raises(DataError, match=r"has 2 classes, but output 'output' of the network has 5.*classes="):
        _ = CheckedTask(edgeopt.image_folder(Net(classes=5).eval(), parts, size=SIDE), "mine").score_kind
    named = edgeopt.image_folder(Net(classes=3).eval(), parts, size=SIDE, classes=("dark", "dim", "bright"))
    assert CheckedTask(named, "mine").score_kind.parts[0].metric == "accuracy"
    assert {int(label) for _, labels in named.eval_batches() for label in labels} == {0, 2}


def train(task, epochs, rate=6e-3):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for epoch in range(epochs):
        model.train()
        for images, labels in task.train_batches(epoch):
            optimizer.zero_grad()
            task.loss(model(images), labels).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return task.score([(model(images).numpy(), labels.numpy()) for images, labels in task.eval_batches()])


def test_clothes_written_out_as_files_are_learned(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGEOPT_DATA", raising=False)
    for split, part, count in (("train", "train", 600), ("selection", "val", 200)):
        images, labels = fashion_mnist.load_split(split)
        chosen = np.random.RandomState(0).permutation(len(labels))[:count]
        for index in chosen:
            name = fashion_mnist.CLASSES[labels[index]].replace("/", " or ")
            path = tmp_path / part / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index]).save(path)
    options = {"color": "gray", "mean": 0.29, "std": 0.35, "batch_size": 16, "crop": False}
    task = edgeopt.image_folder(lambda: Net(1, 10), tmp_path, size=28, **options)
    checked = CheckedTask(task, "clothes")
    assert train(task, 6) > 0.5
    assert checked.labels == tuple(sorted(name.replace("/", " or ") for name in fashion_mnist.CLASSES))
    assert checked.score_kind.text == "accuracy (the largest value of 'output')"


@pytest.mark.skipif(
    not (Path(os.environ.get("EDGEOPT_DATA", "/nowhere")) / "camvid" / "CamVid").is_dir(),
    reason="EDGEOPT_DATA has no street scenes",
)
def test_crops_of_street_scenes_are_learned_by_class(tmp_path):
    chosen, side = {"sky": 0, "building": 1, "road": 3, "tree": 5}, 24
    for part, folder, step in (("train", "train", 12), ("selection", "val", 4)):
        scenes, labels = camvid.load_scenes(part)
        for scene in range(0, len(scenes), step):
            for top in range(0, 180 - side, side):
                for left in range(0, 240 - side, side):
                    window = labels[scene, top : top + side, left : left + side]
                    for name, number in chosen.items():
                        if (window == number).mean() > 0.9:
                            path = tmp_path / folder / name / f"{scene}-{top}-{left}.png"
                            path.parent.mkdir(parents=True, exist_ok=True)
                            crop = scenes[scene, :, top : top + side, left : left + side]
                            Image.fromarray(crop.transpose(1, 2, 0)).save(path)
    task = edgeopt.image_folder(lambda: Net(3, 4), tmp_path, size=24, mean=0.42, std=0.3, batch_size=16)
    assert task.labels == ("building", "road", "sky", "tree")
    assert train(task, 4) > 0.7
