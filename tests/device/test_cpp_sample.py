"""The C++ sample of a bundle, built with CMake: its self-test, its answer for a file, and mistakes that it finds."""

import json
import shutil
import subprocess
import wave

import numpy as np
import onnx
import pytest
from app_bundles import COLORS, draw_pixels, write_app_bundle
from PIL import Image, ImageOps
from python_sample import assert_same_mistakes, run_sample
from stream_bundles import REFUSED, change_manifest, write_recording, write_stream_bundle

ORIENTATION = 0x0112
"""Tag of Exif."""
JPEG_RATIO = 0.1
"""Of a score, which the colours of a JPEG change; an image that lies on its side changes it by more."""
BATCH = 4


@pytest.fixture
def image_bundle(tmp_path):
    return write_app_bundle(tmp_path, "images")


def python_text(bundle, file):
    done = run_sample(bundle, file)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python_answer(bundle, file):
    """Return the first line of the Python sample's answer."""
    return python_text(bundle, file).splitlines()[1]


def write_sound(path, rate=8000):
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, rate, 0, "NONE", ""))
        file.writeframes(np.arange(3000, dtype="<i2").tobytes())
    return path


@pytest.mark.parametrize("kind", ["images", "sounds", "class maps", "boxes"])
def test_it_passes_its_self_test(run_program, tmp_path, kind):
    done = run_program(write_app_bundle(tmp_path, kind))
    assert (done.returncode, done.stdout, done.stderr) == (0, "self-test: passed\n", "")


def test_it_answers_for_an_image_of_another_size_as_the_python_sample_does(run_program, image_bundle, tmp_path):
    large = np.kron(draw_pixels(2), np.ones((3, 3, 1), np.uint8))
    Image.fromarray(large).save(tmp_path / "large.png")
    done = run_program(image_bundle, tmp_path / "large.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["self-test: passed", python_answer(image_bundle, tmp_path / "large.png")]


@pytest.mark.parametrize("rate", [8000, 16000, 11025, 6000])
def test_it_answers_for_a_sound_of_another_length_and_rate_as_the_python_sample_does(run_program, tmp_path, rate):
    bundle = write_app_bundle(tmp_path, "sounds")
    sound = write_sound(tmp_path / "long.wav", rate)
    done = run_program(bundle, sound)
    assert done.stdout.splitlines()[:2] == ["self-test: passed", python_answer(bundle, sound)], done.stderr


@pytest.mark.parametrize("rate", [8000, 16000])
def test_it_answers_after_the_last_chunk_of_a_stream_as_the_python_sample_does(run_program, tmp_path, rate):
    bundle = write_stream_bundle(tmp_path)
    recording = write_recording(tmp_path / "words.wav", "high", "low", rate)
    done = run_program(bundle, recording)
    assert (done.returncode, done.stdout, done.stderr) == (0, python_text(bundle, recording), "")


def test_a_stream_that_it_cannot_run_is_named_in_a_sentence(run_program, tmp_path):
    bundle = write_stream_bundle(tmp_path)
    whole = (bundle / "manifest.json").read_text()
    for change, sentence in REFUSED.items():
        change_manifest(bundle, change)
        done = run_program(bundle, bundle / "golden" / "input-1-0.wav")
        expected = sentence.replace("session.run", "runModel")
        assert (done.returncode, done.stdout, done.stderr) == (1, "self-test: passed\n", f"{expected}\n")
        (bundle / "manifest.json").write_text(whole)


def test_a_stream_with_a_fixed_batch_gets_the_same_chunk_everywhere(run_program, tmp_path):
    bundle = write_stream_bundle(tmp_path)

    def fix(manifest):
        for tensor in manifest["inputs"]:
            tensor["shape"] = [BATCH if size == "batch" else size for size in tensor["shape"]]

    change_manifest(bundle, fix)
    done = run_program(bundle, write_recording(tmp_path / "words.wav", "high", "low"))
    assert done.stdout.splitlines()[1].startswith("high low: "), done.stderr


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_turns_photos_upright(run_program, image_bundle, tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    photo = Image.fromarray(draw_pixels(1, 31, 45))
    photo.save(tmp_path / "photo.png", exif=exif)
    photo.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "photo.png") as file:
        turned = Image.fromarray(np.asarray(ImageOps.exif_transpose(file)))  # without Exif data
    turned.save(tmp_path / "upright.png")
    upright, png, jpeg = (
        run_program(image_bundle, tmp_path / name).stdout.splitlines()[1]
        for name in ("upright.png", "photo.png", "photo.jpg")
    )
    assert png == upright
    assert jpeg.split(": ")[0] == upright.split(": ")[0]
    assert float(jpeg.split(": ")[1]) == pytest.approx(float(upright.split(": ")[1]), rel=JPEG_RATIO)


def convert_to_float16(bundle):
    """Give the model inputs and outputs of float16, a fixed batch, and weights in a second file."""
    model = onnx.load(bundle / "model.onnx")
    graph = model.graph
    for node in graph.node:
        node.input[:] = [f"{name}32" if name == "x" else name for name in node.input]
        node.output[:] = [f"{name}32" if name == "y" else name for name in node.output]
    graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["x32"], to=onnx.TensorProto.FLOAT))
    graph.node.append(onnx.helper.make_node("Cast", ["y32"], ["y"], to=onnx.TensorProto.FLOAT16))
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        value.type.tensor_type.shape.dim[0].dim_value = BATCH
    weights = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
    onnx.save(model, bundle / "model.onnx", **weights)

    def change(manifest):
        for tensor in (*manifest["inputs"], *manifest["outputs"]):
            tensor.update(dtype="float16", shape=[BATCH, *tensor["shape"][1:]])
        for entry in manifest["golden"]:
            np.fromfile(bundle / entry["file"], np.float32).astype(np.float16).tofile(bundle / entry["file"])
            entry["dtype"] = "float16"
            if entry["role"] == "output":
                entry["tolerance"] *= 10  # as a build allows for float16

    change_manifest(bundle, change)


def test_it_runs_a_model_of_float16_with_a_fixed_batch_and_weights_in_a_second_file(run_program, image_bundle):
    convert_to_float16(image_bundle)
    image = image_bundle / "golden" / "input-0-3.png"
    done = run_program(image_bundle, image)
    assert done.stdout.splitlines()[0] == "self-test: passed", done.stdout + done.stderr
    assert done.stdout.splitlines()[1].split(":")[0] == python_answer(image_bundle, image).split(":")[0]
    (image_bundle / "model.onnx.data").unlink()
    done = run_program(image_bundle)
    assert (done.returncode, done.stdout) == (1, "")
    assert "model.onnx.data" in done.stderr


def how_of(manifest):
    return manifest["inputs"][0]["preprocessing"]


IMAGE_MISTAKES = {
    "RGB for BGR": lambda manifest: how_of(manifest).update(color="rgb"),
    "no mean": lambda manifest: how_of(manifest).update(mean=[0.0]),
    "no standard deviation": lambda manifest: how_of(manifest).update(std=[1.0]),
    "bytes instead of 0 to 1": lambda manifest: how_of(manifest).update(scale=1.0),
    "divided by 256": lambda manifest: how_of(manifest).update(scale=256.0),
    "channels last": lambda manifest: how_of(manifest).update(layout="nhwc"),
}


@pytest.mark.parametrize("change", IMAGE_MISTAKES.values(), ids=IMAGE_MISTAKES)
def test_a_mistake_in_preprocessing_fails(run_program, image_bundle, change):
    change_manifest(image_bundle, change)
    done = run_program(image_bundle, image_bundle / "golden" / "input-0-0.png")
    assert done.returncode == 1
    assert all(line.startswith("self-test: ") for line in done.stdout.splitlines())
    assert "self-test: preprocessing of 'x' is off by" in done.stdout


def test_another_rule_of_resizing_and_shifted_labels_fail(run_program, image_bundle):
    def change(manifest):
        how_of(manifest).update(resize="stretch")
        manifest["labels"] = [*COLORS[1:], COLORS[0]]

    change_manifest(image_bundle, change)
    done = run_program(image_bundle)
    assert done.returncode == 1
    assert "self-test: resizing of 'x' is off by" in done.stdout
    answers = json.loads((image_bundle / "manifest.json").read_text())["answers"]
    right = answers[0]["label"]
    wrong = [*COLORS[1:], COLORS[0]][COLORS.index(right)]
    assert f"self-test: sample {answers[0]['sample']} is '{right}', not '{wrong}'" in done.stdout


BOX_MISTAKES = {
    "another stride": lambda manifest: manifest["boxes"].update(stride=8),
    "less certain boxes are shown": lambda manifest: manifest["boxes"].update(min_score=1e-5),
    "only one box": lambda manifest: manifest["boxes"].update(max_boxes=1),
    "labels shifted by one": lambda manifest: manifest.update(labels=[*COLORS[1:], COLORS[0]]),
    "sides are clipped": lambda manifest: manifest["boxes"].update(log_sides=[-4.0, 0.0]),
}


@pytest.mark.parametrize("change", BOX_MISTAKES.values(), ids=BOX_MISTAKES)
def test_mistakes_with_boxes_fail_in_the_words_of_the_python_sample(run_program, tmp_path, change):
    bundle = write_app_bundle(tmp_path, "boxes")
    change_manifest(bundle, change)
    assert_same_mistakes(run_program(bundle), bundle)


def test_mistakes_with_sounds_fail(run_program, tmp_path):
    bundle = write_app_bundle(tmp_path, "sounds")
    change_manifest(bundle, lambda manifest: how_of(manifest).update(peak=32768.0))
    done = run_program(bundle)
    assert done.returncode == 1
    assert "self-test: preprocessing of 'x' is off by" in done.stdout
    change_manifest(bundle, lambda manifest: how_of(manifest).update(peak=1.0, sample_rate=16000))
    assert "self-test: preprocessing of 'x' is off by" in run_program(bundle).stdout


def test_other_weights_fail(run_program, image_bundle):
    model = onnx.load(image_bundle / "model.onnx")
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights[0] *= 1.02
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, model.graph.initializer[0].name))
    onnx.save(model, image_bundle / "model.onnx")
    done = run_program(image_bundle)
    assert done.returncode == 1
    assert done.stdout.startswith("self-test: output 'y' is off by")


def test_a_bundle_without_golden_files_still_answers(run_program, image_bundle):
    change_manifest(image_bundle, lambda manifest: manifest.update(golden=[], answers=[]))
    done = run_program(image_bundle, image_bundle / "golden" / "input-0-0.png")
    assert done.stdout.splitlines()[0] == "self-test: this bundle has no golden files"
    assert done.stdout.splitlines()[1].split(":")[0] in COLORS


def test_a_file_that_cannot_be_the_input_is_named_in_a_sentence(run_program, image_bundle, tmp_path):
    clear = np.concatenate([draw_pixels(0), np.full((20, 24, 1), 254, np.uint8)], axis=-1)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    sentences = {
        "missing.png": "missing.png cannot be read: No such file or directory.",
        ".": " cannot be read: Is a directory.",
        "clear.png": "The image is transparent: its colours are not certain. Save it without that.",
        write_sound(tmp_path / "sound.wav").name: "Give a JPEG, PNG, BMP or GIF: this file cannot be read",
    }
    for name, sentence in sentences.items():
        done = run_program(image_bundle, tmp_path / name)
        assert (done.returncode, done.stdout) == (1, "self-test: passed\n")
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_program_outside_of_a_bundle_and_a_broken_manifest_are_named_in_a_sentence(program, run_program, tmp_path):
    alone = shutil.copy(program, tmp_path / "alone")
    done = subprocess.run([alone], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("No folder above this program has a manifest.json")
    bundle = write_app_bundle(tmp_path, "sounds")
    (bundle / "manifest.json").write_text('{"golden": ')
    done = run_program(bundle)
    assert done.returncode == 1
    assert done.stderr.startswith("manifest.json is not as this program expects it: ")
