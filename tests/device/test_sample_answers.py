"""Every sample that runs here: its self-test passes, and it gives the right answer for a real file of each kind."""

import json
import os
import wave
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from app_bundles import COLORS, draw_flag, draw_pixels, draw_rectangles, write_app_bundle, write_word
from PIL import Image
from python_sample import run_sample
from ready_bundles import write_ready_bundle
from scipy.signal import resample_poly
from stream_bundles import FIRST_AND_LAST, write_recording, write_stream_bundle

from edgeopt.tasks.ready import camvid, fashion_mnist

PROGRAMS = {"python": "png", "node": "png", "cpp": "pgm"}
"""Samples with a command line, and the form in which they write class maps."""
SAMPLES = (*PROGRAMS, "browser")
RIGHT_PIXELS_RATIO = 0.8
"""Of a street scene, without pixels that have no label; the network is right on about nine in ten."""

PIXEL_ERROR = 0.3
"""Of a photo: an edge between two places of the heat-map is at least 0.02 strides from both, and a photo is larger."""
SURE = 0.9
FOUND_CAR_PIXELS_RATIO = 0.6
"""Of the pixels of cars in a street scene, those in a box; the smallest cars are hard to see."""
MOST_BOX_PIXELS_RATIO = 0.5
"""Of the scene, so that a box around all of it is wrong."""


class Answer(NamedTuple):
    check: str
    lines: list[str]
    names: np.ndarray | None
    """Of the class of each pixel."""


@pytest.fixture(params=SAMPLES)
def ask(request, tmp_path):
    """Return a function that gives a sample a file, and returns its answer."""
    name = request.param
    if name == "browser":
        return lambda bundle, file, **_: ask_page(request.getfixturevalue("open_sample"), bundle, file)
    run = {"python": lambda: run_sample, "node": lambda: request.getfixturevalue("run_node")}
    run["cpp"] = lambda: request.getfixturevalue("run_program")
    return lambda bundle, file, **options: ask_program(run[name](), bundle, file, tmp_path, PROGRAMS[name], **options)


def ask_program(run, bundle, file, folder, suffix, *, has_map=False):
    map_file = folder / f"map.{suffix}"
    done = run(bundle, file, *([map_file] if has_map else []))
    assert (done.returncode, done.stderr) == (0, "")
    check, *lines = done.stdout.splitlines()
    names = None
    if has_map:
        with Image.open(map_file) as image:
            assert image.mode == "L"
            labels = json.loads((bundle / "manifest.json").read_text())["labels"]
            names = np.array(labels)[np.asarray(image)]
    return Answer(check, lines, names)


def ask_page(open_sample, bundle, file):
    found = open_sample(bundle, file)
    names = None
    if "picture" in found:
        names = np.array(found["picture"]["names"]).reshape(found["picture"]["height"], found["picture"]["width"])
    return Answer(found["check"], found["answer"].splitlines(), names)


def test_the_class_of_a_photo(ask, tmp_path):
    bundle = write_app_bundle(tmp_path, "images")
    answers = json.loads((bundle / "manifest.json").read_text())["answers"]
    right = next(answer["label"] for answer in answers if answer["sample"] == 2)
    photo = np.kron(draw_pixels(2), np.ones((4, 4, 1), np.uint8))
    Image.fromarray(photo).save(tmp_path / "photo.jpg", quality=95)
    answer = ask(bundle, tmp_path / "photo.jpg")
    assert answer.check == "self-test: passed"
    assert answer.lines[0].startswith(f"{right}: ")
    assert answer.names is None


def test_the_class_of_each_pixel_of_a_photo(ask, tmp_path):
    bundle = write_app_bundle(tmp_path, "class maps")
    photo, classes = draw_flag()
    Image.fromarray(photo).save(tmp_path / "photo.png")
    answer = ask(bundle, tmp_path / "photo.png", has_map=True)
    assert answer.check == "self-test: passed"
    assert answer.lines == ["y: class map of 20x24", "red: 66.7 %", "blue: 16.7 %", "green: 16.7 %"]
    np.testing.assert_array_equal(answer.names, np.array(COLORS)[classes])


FRAMED = {
    "boxes": ((20, 32), (0, 4), (3, 3)),
    "stretched boxes": ((20, 24), (0, 0), (3, 2)),
    "padded boxes": ((20, 20), (0, -2), (3, 3)),
}
"""Kind of a bundle to height and width of a scene in the model's pixels, where the model's input begins in it (top,
left), and how often a photo has each pixel down and across: each rule gives the model its input in whole pixels."""


@pytest.mark.parametrize("kind", FRAMED)
def test_the_boxes_of_a_photo_are_in_its_own_pixels(ask, tmp_path, kind):
    bundle = write_app_bundle(tmp_path, kind)
    (height, width), (top, left), (down, across) = FRAMED[kind]
    drawn, boxes = draw_rectangles(5, 20, min(width, 24))
    start = max(left, 0)
    scene = np.zeros((height, width, 3), np.uint8)
    scene[:, start : start + drawn.shape[1]] = drawn
    Image.fromarray(np.kron(scene, np.ones((down, across, 1), np.uint8))).save(tmp_path / "photo.png")
    answer = ask(bundle, tmp_path / "photo.png")
    assert answer.check == "self-test: passed"
    found = dict(map(read_box, answer.lines))
    assert found.keys() == boxes.keys()
    for label, (left, top, right, bottom) in boxes.items():
        corners = [(left + start) * across, top * down, (right + start) * across, bottom * down]
        np.testing.assert_allclose(found[label][1], corners, atol=PIXEL_ERROR)
        assert found[label][0] > SURE


def read_box(line):
    """Return the label, and the score and the corners, of a line of an answer."""
    label, _, rest = line.partition(": ")
    score, _, corners = rest.partition(" at ")
    return label, (float(score), [float(corner) for corner in corners.split()])


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("word", ["low", "high"])
def test_the_word_in_a_recording_of_any_rate(ask, tmp_path, word, rate):
    bundle = write_app_bundle(tmp_path, "words")
    answer = ask(bundle, write_word(tmp_path / "word.wav", word, rate))
    assert answer.check == "self-test: passed"
    assert answer.lines[0].startswith(f"{word}: ")


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("words", FIRST_AND_LAST[1:3])
def test_the_first_and_the_last_word_of_a_stream(ask, tmp_path, words, rate):
    bundle = write_stream_bundle(tmp_path)
    answer = ask(bundle, write_recording(tmp_path / "words.wav", *words.split(), rate))
    assert answer.check == "self-test: passed"
    assert answer.lines[0].startswith(f"{words}: ")
    assert {line.split(": ")[0] for line in answer.lines} < {*FIRST_AND_LAST}  # and no state


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    return write_ready_bundle(tmp_path_factory.mktemp("fashion"), "fashion")


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return write_ready_bundle(tmp_path_factory.mktemp("camvid"), "camvid_segmentation")


@pytest.fixture(scope="module")
def traffic(tmp_path_factory):
    return write_ready_bundle(tmp_path_factory.mktemp("traffic"), "camvid_detection")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_ready_bundle(tmp_path_factory.mktemp("digits"), "spoken_digits")


def test_the_ready_classifier_names_a_piece_of_clothing(ask, clothes, tmp_path):
    images, labels = fashion_mnist.load_split("test")
    place = int(np.argmax(labels == fashion_mnist.CLASSES.index("Trouser")))
    Image.fromarray(images[place].repeat(3, 0).repeat(3, 1)).save(tmp_path / "photo.png")
    answer = ask(clothes, tmp_path / "photo.png")
    assert answer.check == "self-test: passed"
    assert answer.lines[0].startswith("Trouser: ")


def test_the_ready_segmentation_finds_the_parts_of_a_street(ask, streets):
    folder = camvid.find_folder()
    photo = min((folder / "test").glob("*.png"))
    with Image.open(folder / "testannot" / photo.name) as image:
        right = np.asarray(image)
    answer = ask(streets, photo, has_map=True)
    assert answer.check == "self-test: passed"
    assert answer.lines[0] == "y: class map of 180x240"
    named = np.array([*camvid.SCENE_CLASSES, "void"])[right]
    assert np.mean(answer.names[named != "void"] == named[named != "void"]) > RIGHT_PIXELS_RATIO


def test_the_ready_detector_finds_most_cars_of_a_street(ask, traffic):
    photo = min((camvid.find_folder() / "test").glob("*.png"))
    answer = ask(traffic, photo)
    assert answer.check == "self-test: passed"
    found = [read_box(line) for line in answer.lines]
    cars = [corners for label, (_, corners) in found if label == "car"]
    with Image.open(camvid.find_folder() / "testannot" / photo.name) as image:
        is_car = np.asarray(image) == camvid.SCENE_CLASSES.index("car")
    inside = np.zeros_like(is_car)
    for left, top, right, bottom in np.rint(cars).astype(int).tolist():
        inside[top:bottom, left:right] = True
    assert inside[is_car].mean() > FOUND_CAR_PIXELS_RATIO
    assert inside.mean() < MOST_BOX_PIXELS_RATIO


@pytest.mark.parametrize("rate", [8000, 16000])
def test_the_ready_speech_task_hears_a_digit(ask, digits, tmp_path, rate):
    recording = Path(os.environ["EDGEOPT_DATA"]) / "fsdd" / "recordings" / "7_jackson_0.wav"
    with wave.open(str(recording)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    samples = np.rint(resample_poly(samples, rate // 8000, 1)).clip(-(2**15), 2**15 - 1).astype("<i2")
    with wave.open(str(tmp_path / "digit.wav"), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    answer = ask(digits, tmp_path / "digit.wav")
    assert answer.check == "self-test: passed"
    assert answer.lines[0].startswith("7: ")
