"""The Python sample with a streaming model: a sound in chunks, with the states of each for the next one."""

import json
import wave

import msgspec
import numpy as np
import onnxruntime
import pytest
from python_sample import load_sample, run_sample
from stream_bundles import (
    CHUNK,
    CHUNKS,
    FIRST_AND_LAST,
    RATE,
    REFUSED,
    change_manifest,
    write_recording,
    write_stream_bundle,
)

from edgeopt.records.preprocessing import ImagePreprocessing


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_stream_bundle(tmp_path_factory.mktemp("stream"))


def scores_of(bundle, sound):
    """Feed a model by hand; return the scores after the last chunk."""
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    first = heard = np.zeros((1, 1, 2), np.float32)
    for start in range(0, len(sound), CHUNK):
        chunk = np.zeros((1, CHUNK), np.float32)
        part = sound[start : start + CHUNK]
        chunk[0, : len(part)] = part
        feeds = {"first": first, "chunk": chunk, "heard": heard}
        first, heard, scores = session.run(["next_first", "next_heard", "scores"], feeds)
    return scores[0]


def read_mono(path):
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2).mean(1) / 2**15


@pytest.mark.parametrize("label", FIRST_AND_LAST)
def test_it_prints_the_answer_after_the_last_chunk_and_nothing_of_states(bundle, tmp_path, label):
    recording = write_recording(tmp_path / "sound.wav", *label.split())
    done = run_sample(bundle, recording)
    assert (done.returncode, done.stderr) == (0, "")
    scores = scores_of(bundle, read_mono(recording))
    best = np.argsort(-scores)[:3]
    assert done.stdout.splitlines() == [
        "self-test: passed",
        *(f"{FIRST_AND_LAST[index]}: {scores[index]:.4g}" for index in best),
    ]
    assert FIRST_AND_LAST[best[0]] == label


def forget_states(sample):
    right = sample.first_states

    class Forgetful(dict):
        def update(self, states):
            pass

    sample.first_states = lambda states: Forgetful(right(states))


def swap_states(sample):
    right = sample.first_states

    class Swapping(dict):
        def update(self, states):
            super().update(first=states["heard"], heard=states["first"])

    sample.first_states = lambda states: Swapping(right(states))


def drop_the_end(sample):
    right = sample.make_chunks
    sample.make_chunks = lambda path, tensor: right(path, tensor)[:-1]


def fill_in_front(sample):
    right = sample.make_chunks

    def chunks(path, tensor):
        *whole, last = right(path, tensor)
        return [*whole, np.roll(last, CHUNK // 2, axis=-1)]

    sample.make_chunks = chunks


def take_one_input(sample):
    sample.make_chunks = lambda path, tensor: [sample.make_input(path, tensor)]


MISTAKES = (forget_states, swap_states, drop_the_end, fill_in_front, take_one_input)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_with_states_or_chunks_gives_another_answer(bundle, tmp_path, mistake):
    sample = load_sample(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    recording = write_recording(tmp_path / "sound.wav", "low", "high")

    def heard():
        return FIRST_AND_LAST[int(np.argmax(sample.answer(session, manifest, recording)["scores"]))]

    assert heard() == "low high"
    mistake(sample)
    assert heard() != "low high"


@pytest.mark.parametrize("samples", [0, 1, CHUNK, CHUNK + 1])
def test_a_sound_has_at_least_one_chunk_and_no_empty_one_after_it(bundle, tmp_path, samples):
    with wave.open(str(tmp_path / "short.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.ones(samples, "<i2").tobytes())
    manifest = json.loads((bundle / "manifest.json").read_text())
    chunks = load_sample(bundle).make_chunks(tmp_path / "short.wav", manifest["inputs"][1])
    assert [chunk.shape for chunk in chunks] == [(1, CHUNK)] * (2 if samples > CHUNK else 1)
    assert np.count_nonzero(chunks) == samples


def test_a_fixed_batch_gets_the_same_chunk_everywhere(tmp_path):
    bundle = write_stream_bundle(tmp_path)

    def fix(manifest):
        for tensor in manifest["inputs"]:
            tensor["shape"] = [3 if size == "batch" else size for size in tensor["shape"]]

    change_manifest(bundle, fix)
    done = run_sample(bundle, write_recording(tmp_path / "sound.wav", "high", "low"))
    assert done.stdout.splitlines()[1].startswith("high low: "), done.stderr


@pytest.mark.parametrize(("change", "sentence"), REFUSED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_the_sample_cannot_run_is_named_in_a_sentence(tmp_path, change, sentence):
    bundle = write_stream_bundle(tmp_path)
    change_manifest(bundle, change)
    done = run_sample(bundle, bundle / "golden" / "input-1-0.wav")
    assert (done.returncode, done.stdout, done.stderr) == (1, "self-test: passed\n", f"{sentence}\n")


def test_an_image_is_one_frame(bundle, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 6)).save(tmp_path / "frame.png")
    how = msgspec.to_builtins(ImagePreprocessing(height=6, width=8))
    tensor = {"name": "frame", "dtype": "float32", "shape": ["batch", 3, 6, 8], "preprocessing": how}
    (frame,) = load_sample(bundle).make_chunks(tmp_path / "frame.png", tensor)
    assert frame.shape == (1, 3, 6, 8)


def test_the_card_says_how_states_go_back_and_names_the_command_for_a_file(bundle, tmp_path):
    card = (bundle / "README.md").read_text()
    assert "run.py FILE " in card
    assert "`first`: float32 [1, batch, 2]\n  - a state: zeros at first, then the output `next_first`" in card
    other = write_stream_bundle(tmp_path, zero_states=("heard",))
    card = (other / "README.md").read_text()
    assert "run.py FILE " not in card
    assert "- a state: a value of the task's at first, then the output `next_first`" in card
    without_length = msgspec.structs.replace(CHUNKS, samples=None)
    (tmp_path / "any").mkdir()
    assert "run.py FILE " not in (write_stream_bundle(tmp_path / "any", how=without_length) / "README.md").read_text()
