"""Folders of arrays, sounds and images, and Python functions, as the data of a given file."""

import os
import random
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_files import mean_model, save, value

import edgeopt
from edgeopt.errors import DataError, EdgeoptError, InputError
from edgeopt.graph.given.values import model_inputs
from edgeopt.records.preprocessing import DataOptions, SoundPreprocessing
from edgeopt.tasks.given.onnx_file import OnnxTask
from edgeopt.tasks.onnx_data.load import load_samples
from edgeopt.tasks.onnx_data.specs import describe_inputs


def specs_of(path):
    return describe_inputs(model_inputs(onnx.load(path).graph))


def sizes(samples):
    return [(group.samples, group.inputs["x"].shape) for group in samples.groups]


@pytest.fixture
def model(tmp_path):
    return mean_model(tmp_path / "m.onnx", ["n", 3, "time"])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_a_folder_of_arrays_of_any_lengths_is_grouped_by_shape(model, folder):
    for number, length in enumerate([5, 7, 5, 9, 7, 5]):
        np.save(folder / f"{number}.npy", np.full((3, length), number, np.float64))
    samples = load_samples(str(folder), specs_of(model))
    assert sizes(samples) == [(3, (3, 3, 5)), (2, (2, 3, 7)), (1, (1, 3, 9))]
    assert samples.groups[0].inputs["x"][:, 0, 0].tolist() == [0, 2, 5]
    assert samples.notes == ("'x' cast from float64 to float32",)


def test_the_file_of_a_folder_that_does_not_fit_is_named(model, folder):
    np.save(folder / "0.npy", np.zeros((3, 4), np.float32))
    np.save(folder / "1.npy", np.zeros((4, 4), np.float32))
    with pytest.raises(DataError, match=r"1\.npy: 'x' has shape \(1, 4, 4\), but the model takes \[n, 3, time\]"):
        load_samples(str(folder), specs_of(model))


def test_labels_are_in_the_files_or_in_one_file_or_the_names_of_subfolders(model, folder):
    for label in (2, 1):
        (folder / str(label)).mkdir()
        np.savez(folder / str(label) / "a.npz", x=np.zeros((3, 4), np.float32))
    by_name = load_samples(str(folder), specs_of(model))
    assert (by_name.groups[0].labels.tolist(), by_name.labels_source) == (
        [1, 2],
        f"{folder}: the names of its subfolders",
    )
    np.save(folder / "labels.npy", np.array([5, 6]))
    assert load_samples(str(folder), specs_of(model)).groups[0].labels.tolist() == [5, 6]
    np.save(folder / "labels.npy", np.array([5, 6, 7]))
    with pytest.raises(DataError, match=r"labels\.npy has shape \(3,\), but the folder has 2 files"):
        load_samples(str(folder), specs_of(model))
    (folder / "labels.npy").unlink()
    np.savez(folder / "c.npz", x=np.zeros((3, 4), np.float32), labels=np.int64(4))
    with pytest.raises(DataError, match="some samples have labels and others have none"):
        load_samples(str(folder), specs_of(model))


def test_labels_of_a_folder_under_another_name_are_not_dropped(model, folder):
    np.savez(folder / "a.npz", x=np.zeros((3, 4), np.float32), label=np.int64(4))
    with pytest.raises(DataError, match=r"a\.npz has an array 'label', .* name it 'labels'"):
        load_samples(str(folder), specs_of(model))
    assert load_samples(str(folder), specs_of(model), judged=False).groups[0].labels is None
    np.save(folder / "labels.npy", np.array([5]))
    assert load_samples(str(folder), specs_of(model)).groups[0].labels.tolist() == [5]
    np.savez(folder / "a.npz", x=np.zeros((3, 4), np.float32), answer=np.int64(4))
    (folder / "labels.npy").rename(folder / "label.npy")
    with pytest.raises(DataError, match=r"label\.npy would be a sample. .* name it labels\.npy"):
        load_samples(str(folder), specs_of(model))
    (folder / "label.npy").unlink()
    assert load_samples(str(folder), specs_of(model)).notes == ("not used of each file: answer",)


@pytest.mark.parametrize(
    ("files", "reason"),
    [(["a.txt"], "has no files of samples"), (["a.npy", "b.wav"], r"1 arrays \(such as a\.npy\) and 1 sounds")],
)
def test_a_folder_without_samples_or_of_several_kinds_is_refused(model, folder, files, reason):
    for name in files:
        (folder / name).write_bytes(b"x")
    with pytest.raises(DataError, match=reason):
        load_samples(str(folder), specs_of(model))


def write_wave(path, values, channels=1, rate=8000):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(values, "<i2").tobytes())


def test_sounds_are_one_channel_of_any_length(tmp_path, folder):
    model = mean_model(tmp_path / "m.onnx", ["n", "time"])
    write_wave(folder / "a.wav", [0, 16384, -32768])
    write_wave(folder / "b.wav", [16384, 0, 16384, 0], channels=2)
    samples = load_samples(str(folder), specs_of(model))
    assert [group.inputs["x"].tolist() for group in samples.groups] == [[[0, 0.5, -1]], [[0.25, 0.25]]]
    assert samples.preprocessing == {"x": SoundPreprocessing(sample_rate=8000)}
    assert samples.notes == (f"inputs: {samples.preprocessing['x'].text}",)


def test_sounds_of_several_rates_are_refused_unless_the_model_reads_the_rate(tmp_path, folder):
    write_wave(folder / "a.wav", [0, 1, 2])
    write_wave(folder / "b.wav", [0, 1, 2], rate=16000)
    with pytest.raises(DataError, match=r"a\.wav has 8,000 samples a second, and .*b\.wav has 16,000"):
        load_samples(str(folder), specs_of(mean_model(tmp_path / "m.onnx", ["n", "time"])))
    inputs = [value("x", ["n", "time"]), value("sr", [], "int64")]
    path = save(tmp_path / "rate.onnx", [], inputs, [value("sr", [], "int64")])
    with pytest.raises(DataError, match="sr"):  # one number for all samples cannot be two
        load_samples(str(folder), specs_of(path))


def test_a_size_to_measure_at_does_not_cut_sounds(tmp_path, folder):
    write_wave(folder / "a.wav", [0, 1, 2, 3, 4])
    specs = specs_of(mean_model(tmp_path / "m.onnx", ["n", "time"]))
    samples = load_samples(str(folder), specs, DataOptions(sizes={"x": (2,)}))
    assert samples.groups[0].inputs["x"].shape == (1, 5)


def test_sounds_are_cut_to_a_fixed_length_with_their_rate(tmp_path, folder):
    path = save(
        tmp_path / "m.onnx", [], [value("x", [1, 2], "int16"), value("sr", [], "int64")], [value("sr", [], "int64")]
    )
    write_wave(folder / "a.wav", [1, 2, 3, 4, 5])
    samples = load_samples(str(folder), specs_of(path))
    assert samples.groups[0].inputs["x"].tolist() == [[1, 2], [3, 4]]
    assert (samples.groups[0].inputs["sr"], samples.axes) == (8000, {"x": 0, "sr": None})
    (folder / "b.wav").write_bytes(b"RIFF and no more")
    with pytest.raises(DataError, match=r"b\.wav cannot be read as a"):
        load_samples(str(folder), specs_of(path))


def test_features_are_not_made_of_sounds(tmp_path, folder):
    write_wave(folder / "a.wav", [1, 2, 3])
    with pytest.raises(InputError, match=r"takes float32 \[n, 80, time\], which is not a sound as it is"):
        load_samples(str(folder), specs_of(mean_model(tmp_path / "m.onnx", ["n", 80, "time"])))


def save_image(path, pixels):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.asarray(pixels, np.uint8)).save(path)


RED = np.full((4, 6, 3), [255, 0, 51])


@pytest.mark.parametrize(
    ("shape", "kind", "options", "found", "first"),
    [
        (["n", 3, "h", "w"], "float32", DataOptions(), (1, 3, 4, 6), [1, 0, 0.2]),
        (["n", 3, 2, 2], "float32", DataOptions(mean=(0.5,), std=(0.5,)), (1, 3, 2, 2), [1, -1, -0.6]),
        (["n", 2, 2, 3], "uint8", DataOptions(color="bgr"), (1, 2, 2, 3), [51, 0, 255]),
        (["n", "h", "w", 3], "float32", DataOptions(mean=(127.5,), size=(5, 4)), (1, 5, 4, 3), [127.5, -127.5, -76.5]),
    ],
)
def test_images_are_resized_scaled_and_laid_out(tmp_path, folder, shape, kind, options, found, first):
    save_image(folder / "a.png", RED)
    samples = load_samples(str(folder), specs_of(mean_model(tmp_path / "m.onnx", shape, kind)), options)
    (image,) = (group.inputs["x"] for group in samples.groups)
    pixel = image[0, :, 0, 0] if shape[1] == 3 else image[0, 0, 0]
    assert (image.shape, pixel.tolist()) == (found, pytest.approx(first, abs=1e-6))


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        (["n", "a", "b", "c"], DataOptions(), "say --layout nchw or --layout nhwc"),
        (["n", 3, 8, 8], DataOptions(size=(4, 4)), "--size 4x4 does not fit"),
        (["n", 3, 8, 8], DataOptions(color="gray"), "3 channels, but --color is gray"),
        (["n", 3, 8, 8], DataOptions(mean=(1, 2)), "--mean has 2 numbers; give one, or 3"),
        (["n", 3], DataOptions(), "which is not a batch of images"),
    ],
)
def test_options_that_do_not_fit_a_model_of_images_are_refused(tmp_path, folder, shape, options, reason):
    (folder / "a.png").write_bytes(b"not looked at")
    with pytest.raises(InputError, match=reason):
        load_samples(str(folder), specs_of(mean_model(tmp_path / "m.onnx", shape)), options)


def test_reading_images_without_pillow_says_what_to_install(tmp_path, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    (folder / "a.png").write_bytes(b"not looked at")
    with pytest.raises(InputError, match="takes Pillow: pip install pillow"):
        load_samples(str(folder), specs_of(mean_model(tmp_path / "m.onnx", ["n", 3, 8, 8])))


def test_options_for_images_go_only_with_a_folder(model, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4), np.float32))
    with pytest.raises(InputError, match=r"--mean, --size goes with a folder of images; .*x\.npy isn't a folder"):
        load_samples(str(tmp_path / "x.npy"), specs_of(model), DataOptions(mean=(1,), size=(2, 2)))


FUNCTIONS = """
import numpy as np
def arrays():
    for length in (4, 5, 4):
        yield np.zeros((3, length))
def labelled():
    for label in range(3):
        yield {"x": np.zeros((3, 4))}, label
def with_labels():
    for label in range(3):
        yield {"x": np.zeros((3, 4)), "labels": label}
def with_targets():
    yield {"x": np.zeros((3, 4)), "target": 1}
def batches():
    yield np.zeros((2, 3, 4)), [0, 1]
def wrong():
    yield {"y": np.zeros(3)}
def words():
    yield "text"
def number():
    return 3
def fails():
    yield np.zeros((3, 4))
    raise KeyError("row 2")
"""


READABLE = ("arrays", "labelled", "with_labels", "batches")


def test_a_python_function_yields_arrays_dicts_and_labels(model, tmp_path):
    source = tmp_path / "own.py"
    source.write_text(FUNCTIONS)
    found = {name: load_samples(f"{source}:{name}", specs_of(model)) for name in READABLE}
    assert sizes(found["arrays"]) == [(2, (2, 3, 4)), (1, (1, 3, 5))]
    assert found["labelled"].groups[0].labels.tolist() == [0, 1, 2]
    assert found["with_labels"].groups[0].labels.tolist() == [0, 1, 2]
    assert found["batches"].groups[0].labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wrong", r"sample 0 has no array 'x'; the model's inputs are x, the sample has y"),
        ("with_targets", r"sample 0 has an array 'target', .* name it 'labels'"),
        ("words", "'x' has shape"),
        ("number", r"has to yield samples, one at a time; it returned int"),
        ("array", r"has no function 'array' \(did you mean 'arrays'\?\)"),
        ("fails", r"the function failed with KeyError.*row 2.*own\.py"),
    ],
)
def test_a_function_that_does_not_yield_samples_is_refused(model, tmp_path, name, reason):
    from edgeopt.pipeline.given_model import open_given_task

    source = tmp_path / "own.py"
    source.write_text(FUNCTIONS)
    with pytest.raises(InputError, match=f"(?s){reason}"):
        open_given_task(model, f"{source}:{name}")


def test_samples_of_different_lengths_are_split_batched_and_judged_at_the_largest(model, folder):
    for number in range(100):
        np.save(folder / f"{number:03}.npy", np.full((3, 4 + number % 3), number, np.float32))
    np.save(folder / "labels.npy", np.arange(100))
    task = OnnxTask(model, folder)
    selected = [int(row[0, 0]) for batch in task.batches() for row in batch["x"]]
    calibrated = [int(row[0, 0]) for batch in task.calibration_batches() for row in batch["x"]]
    assert sorted(selected + calibrated) == list(range(100))
    assert np.concatenate(task.target_batches()).tolist() == selected
    assert {batch["x"].shape[2] for batch in task.calibration_batches()} == {4, 5, 6}
    assert task.example_inputs[0].shape == (1, 3, 6)
    assert [list(dims) for dims in task.dynamic_dims] == [[2]]


def test_a_given_file_and_its_data_are_read_without_pytorch(model, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 3, 5), np.uint8))
    code = (
        "import sys\nfrom edgeopt.cli import main\n"
        f"sys.argv = ['edgeopt', 'build', {str(model)!r}, '--data', {str(tmp_path / 'x.npz')!r}, '--target', 'phone']\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(edgeopt.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr.split()[-1]) == (2, "False"), done.stderr
    assert f"{tmp_path / 'x.npz'}: 'x' is uint8, but the model takes float32" in " ".join(done.stderr.split())


def mutated(content, rng):
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        if rng.random() < 0.7:
            data[at] = rng.randrange(256)
        else:
            del data[at : at + rng.randint(1, 8)]
    return bytes(data)


@pytest.mark.parametrize("ending", ["npy", "npz", "wav"])
def test_data_with_a_few_wrong_bytes_are_read_or_refused_in_a_sentence(tmp_path, folder, ending):
    path, rng = folder / f"a.{ending}", random.Random(0)
    if ending == "wav":
        write_wave(path, range(40))
    else:
        save_arrays = np.save if ending == "npy" else np.savez
        save_arrays(path, **{"arr" if ending == "npy" else "x": np.arange(40, dtype=np.float32)})
    content, specs = path.read_bytes(), specs_of(mean_model(tmp_path / "m.onnx", ["n", "time"]))
    outcomes = set()
    for _ in range(300):
        path.write_bytes(mutated(content, rng))
        try:
            load_samples(str(folder), specs)
            outcomes.add("read")
        except EdgeoptError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
