"""The Python sample of a bundle: it gives the golden outputs and answers for real files, and finds planted mistakes."""

import json
import shutil
import wave

import numpy as np
import onnx
import onnxruntime
import pytest
from app_bundles import COLORS, draw_pixels, draw_rectangles, write_app_bundle
from PIL import Image
from python_sample import load_sample, run_sample

from edgeopt.tasks.image_files import read_image

KINDS = ("images", "sounds", "class maps", "boxes")
RESAMPLING_ERROR = 2e-3  # of the largest value; a filter of 16 zero crossings leaves about 1e-3


@pytest.fixture(scope="module", params=KINDS)
def bundle(request, tmp_path_factory):
    return write_app_bundle(tmp_path_factory.mktemp("app"), request.param)


@pytest.fixture(scope="module")
def image_bundle(tmp_path_factory):
    return write_app_bundle(tmp_path_factory.mktemp("app"), "images")


def mistakes_of(bundle, change=lambda sample, manifest: None):
    """Return what the self-test finds after an app's mistake."""
    sample = load_sample(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(sample, manifest)
    return sample.find_mistakes(onnxruntime.InferenceSession(str(bundle / "model.onnx")), manifest)


def test_it_passes_its_self_test_without_edgeopt(bundle):
    done = run_sample(bundle)
    assert (done.returncode, done.stdout, done.stderr) == (0, "self-test: passed\n", "")
    assert "edgeopt" not in (bundle / "samples" / "python" / "run.py").read_text().split('"""', 2)[2]


def test_it_answers_for_an_image_of_another_size(image_bundle, tmp_path):
    large = np.kron(draw_pixels(2), np.ones((3, 3, 1), np.uint8))
    Image.fromarray(large).save(tmp_path / "large.png")
    done = run_sample(image_bundle, tmp_path / "large.png")
    assert done.returncode == 0, done.stderr
    best = done.stdout.splitlines()[1].split(":")[0]
    answers = json.loads((image_bundle / "manifest.json").read_text())["answers"]
    assert best in COLORS
    assert best == next(answer["label"] for answer in answers if answer["sample"] == 2)


@pytest.mark.parametrize(
    ("rate", "wanted"), [(44100, 8000), (16000, 8000), (8000, 16000), (48000, 44100), (11025, 8000)]
)
def test_a_resampled_tone_is_the_tone_at_the_new_rate_and_what_it_cannot_hold_is_gone(image_bundle, rate, wanted):
    resample = load_sample(image_bundle).resample

    def tone(frequency, rate):
        return np.sin(2 * np.pi * frequency * np.arange(rate) / rate)

    found = resample(tone(440, rate), rate, wanted)
    assert len(found) == wanted
    middle = slice(wanted // 4, -wanted // 4)
    assert np.abs(found - tone(440, wanted))[middle].max() < RESAMPLING_ERROR
    if rate > 1.5 * wanted:
        assert np.abs(resample(tone(0.7 * wanted, rate), rate, wanted))[middle].max() < RESAMPLING_ERROR
    assert len(resample(np.zeros(0), rate, wanted)) == 0


def test_a_file_that_is_no_wav_of_16_bits_is_named_in_a_sentence(tmp_path):
    bundle = write_app_bundle(tmp_path, "sounds")
    (tmp_path / "words.wav").write_text("these are words")
    done = run_sample(bundle, tmp_path / "words.wav")
    assert done.returncode == 1
    assert f"{tmp_path / 'words.wav'} cannot be read as a .wav of 16 bits (" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_card_names_the_way_to_a_class_map_if_the_model_gives_one(image_bundle, tmp_path):
    assert "run.py FILE MAP.png" in (write_app_bundle(tmp_path, "class maps") / "README.md").read_text()
    assert "MAP.png" not in (image_bundle / "README.md").read_text()


def test_a_class_map_that_there_is_not_is_named_in_a_sentence(image_bundle, tmp_path):
    done = run_sample(image_bundle, image_bundle / "golden" / "input-0-0.png", tmp_path / "map.png")
    assert done.returncode == 1
    assert done.stderr == "The model gives no class map of an image, so there is none to write.\n"
    assert not (tmp_path / "map.png").exists()


def how_of(manifest):
    return manifest["inputs"][0]["preprocessing"]


def swap_sides(sample, manifest):
    right = sample.prepare_image
    sample.prepare_image = lambda path, how: right(path, how).swapaxes(2, 3).copy().reshape(1, 3, 20, 24)


def reshape_only(sample, manifest):
    """Channels last, taken for channels first."""
    right = sample.prepare_image
    sample.prepare_image = lambda path, how: right(path, how | {"layout": "nhwc"}).reshape(1, 3, 20, 24)


def upside_down(sample, manifest):
    right = sample.prepare_image
    sample.prepare_image = lambda path, how: right(path, how)[:, :, ::-1]


def nearest_pixels(sample, manifest):
    def resized(image, how):
        crop = min(image.width / how["width"], image.height / how["height"])
        image = image.resize((round(image.width / crop), round(image.height / crop)), Image.Resampling.NEAREST)
        return image.crop((0, 0, how["width"], how["height"]))  # and not the middle

    sample.resize_to_fit = resized


def grey(sample, manifest):
    right = sample.resize_to_fit
    sample.resize_to_fit = lambda image, how: right(image.convert("L").convert("RGB"), how)


IMAGE_MISTAKES = {
    "RGB for BGR": lambda sample, manifest: how_of(manifest).update(color="rgb"),
    "no mean": lambda sample, manifest: how_of(manifest).update(mean=[0.0]),
    "no standard deviation": lambda sample, manifest: how_of(manifest).update(std=[1.0]),
    "mean of the other channel order": lambda sample, manifest: how_of(manifest)["mean"].reverse(),
    "bytes instead of 0 to 1": lambda sample, manifest: how_of(manifest).update(scale=1.0),
    "divided by 256": lambda sample, manifest: how_of(manifest).update(scale=256.0),
    "sides swapped": swap_sides,
    "channels last": reshape_only,
    "upside down": upside_down,
    "stretched instead of cut": lambda sample, manifest: how_of(manifest).update(resize="stretch"),
    "nearest pixels from a corner": nearest_pixels,
    "grey": grey,
    "labels shifted by one": lambda sample, manifest: manifest.update(labels=[*COLORS[1:], COLORS[0]]),
}


@pytest.mark.parametrize("change", IMAGE_MISTAKES.values(), ids=IMAGE_MISTAKES)
def test_a_planted_mistake_of_an_app_is_found(image_bundle, change):
    assert mistakes_of(image_bundle) == []
    assert mistakes_of(image_bundle, change)


SOUND_MISTAKES = {
    "not scaled to 1": lambda sample, manifest: how_of(manifest).update(peak=32768.0),
    "another length": lambda sample, manifest: how_of(manifest).update(samples=700),
    "another rate": lambda sample, manifest: how_of(manifest).update(sample_rate=16000),
}


@pytest.mark.parametrize("change", SOUND_MISTAKES.values(), ids=SOUND_MISTAKES)
def test_a_planted_mistake_with_sounds_is_found(tmp_path, change):
    bundle = write_app_bundle(tmp_path, "sounds")
    assert mistakes_of(bundle) == []
    assert mistakes_of(bundle, change)


@pytest.fixture(scope="module")
def box_bundle(tmp_path_factory):
    return write_app_bundle(tmp_path_factory.mktemp("app"), "boxes")


def maps_of(manifest):
    return manifest["boxes"]


def change_sides(change):
    """An app that reads other sides than there are, of shape (samples, 4, height, width)."""

    def plant(sample, manifest):
        right = sample.read_boxes
        name = maps_of(manifest)["sides"]
        sample.read_boxes = lambda manifest, outputs, number: right(
            manifest, outputs | {name: change(outputs[name])}, number
        )

    return plant


def move_boxes(sample, manifest):
    """Places begin at their corner, and not in their middle."""
    right = sample.read_boxes

    def moved(*arguments):
        boxes = right(*arguments)
        return [box | {"corners": [corner - 2 for corner in box["corners"]]} for box in boxes]

    sample.read_boxes = moved


class NumpyWithoutNeighbours:
    """numpy for an app that compares a place with no other one."""

    def __getattr__(self, name):
        return getattr(np, name)

    def pad(self, array, width, **options):
        return np.full_like(np.pad(array, width), -np.inf)


def keep_every_place(sample, manifest):
    """Neighbours of a peak are boxes too."""
    sample.np = NumpyWithoutNeighbours()


BOX_MISTAKES = {
    "left and top swapped": change_sides(lambda sides: sides[:, [1, 0, 3, 2]]),
    "left and right swapped": change_sides(lambda sides: sides[:, [2, 1, 0, 3]]),
    "distances instead of logarithms": change_sides(np.exp),
    "another stride": lambda sample, manifest: maps_of(manifest).update(stride=8),
    "places begin at their corner": move_boxes,
    "labels shifted by one": lambda sample, manifest: manifest.update(labels=[*COLORS[1:], COLORS[0]]),
    "every place is a peak": keep_every_place,
    "less certain boxes are shown": lambda sample, manifest: maps_of(manifest).update(min_score=1e-5),
    "certain boxes are not shown": lambda sample, manifest: maps_of(manifest).update(min_score=0.99),
    "only one box": lambda sample, manifest: maps_of(manifest).update(max_boxes=1),
}


@pytest.mark.parametrize("change", BOX_MISTAKES.values(), ids=BOX_MISTAKES)
def test_a_planted_mistake_with_boxes_is_found(box_bundle, change):
    assert mistakes_of(box_bundle) == []
    found = mistakes_of(box_bundle, change)
    assert found
    assert all(mistake.startswith("sample ") for mistake in found)


def test_a_picture_with_the_boxes_of_an_image_is_written(box_bundle, tmp_path):
    pixels, boxes = draw_rectangles(2)
    Image.fromarray(np.kron(pixels, np.ones((8, 8, 1), np.uint8))).save(tmp_path / "scene.png")
    done = run_sample(box_bundle, tmp_path / "scene.png", tmp_path / "boxes.png")
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "boxes.png") as picture:
        assert picture.size == (192, 160)
        for left, top, right, bottom in boxes.values():
            assert picture.getpixel((8 * left, 4 * (top + bottom))) == (255, 0, 0)
            assert picture.getpixel((8 * right - 1, 4 * (top + bottom))) == (255, 0, 0)


def test_an_image_without_boxes_is_answered_in_a_sentence(box_bundle, tmp_path):
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(tmp_path / "black.png")
    done = run_sample(box_bundle, tmp_path / "black.png")
    assert done.stdout.splitlines()[1:] == ["no boxes with a score of at least 0.3"]


def test_a_bundle_without_golden_files_still_answers(image_bundle, tmp_path):
    bundle = shutil.copytree(image_bundle, tmp_path / "out")
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"golden": [], "answers": []}))
    done = run_sample(bundle, bundle / "golden" / "input-0-0.png")
    assert done.stdout.splitlines()[0] == "self-test: this bundle has no golden files"
    assert done.stdout.splitlines()[1].split(":")[0] in COLORS


def test_deep_pictures_become_8_bits_and_other_sounds_are_refused(image_bundle, tmp_path):
    sample = load_sample(image_bundle)
    values = np.array([[0, 300, 65535, 32768]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    expected = read_image(tmp_path / "deep.png", 1)
    how = {"color": "gray", "height": None, "width": None, "dtype": "uint8", "layout": "nhwc"}
    np.testing.assert_array_equal(sample.prepare_image(tmp_path / "deep.png", how)[0], expected)
    with wave.open(str(tmp_path / "8.wav"), "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        file.writeframes(bytes(10))
    with pytest.raises(SystemExit, match="has 8 bits; save it with 16"):
        sample.prepare_sound(tmp_path / "8.wav", {"sample_rate": 8000}, [1, 10])


def test_weights_of_another_model_are_found(tmp_path):
    bundle = write_app_bundle(tmp_path, "images")
    model = onnx.load(bundle / "model.onnx")
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights[0] *= 1.02
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, model.graph.initializer[0].name))
    onnx.save(model, bundle / "model.onnx")
    assert [mistake.split(" is off")[0] for mistake in mistakes_of(bundle)] == ["output 'y'"]


def test_the_card_of_a_detector_says_so(box_bundle):
    card = (box_bundle / "README.md").read_text()
    assert "pipeline_tag: object-detection\n" in card
    assert "run.py FILE BOXES.png" in card


def test_the_card_names_inputs_outputs_limits_and_licence(image_bundle):
    card = (image_bundle / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: onnx\npipeline_tag: image-classification\n")
    for words in ("`x`: float32 [batch, 3, 20, 24]", "BGR image", "blue, green, red", "| Score drop |", "not stated"):
        assert words in card
