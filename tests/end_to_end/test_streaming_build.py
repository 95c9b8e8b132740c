"""A streaming network through a build: its files are scored over whole recordings, with states of their own."""

import json

import numpy as np
import onnxruntime
import pytest
import tiny_stream
from building import TESTS, choice_of, edgeopt, write_target
from python_sample import run_sample

from edgeopt.bundle.raw_inputs import encode_wav


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    write_target(folder / "tiny.toml", max_score_drop="0.06", precisions='["int8", "fp32"]')
    done = edgeopt(
        folder, "build", f"{TESTS / 'tiny_stream.py'}:task", "--target", "tiny.toml", "--quick", "--no-train", "--yes"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_file_is_scored_on_recordings_that_it_listened_to_itself(folder):
    choice = choice_of(folder)
    assert choice["baseline"]["score"] > 0.95
    winner = choice["trials"][choice["winner"]["number"]]
    assert winner["size_bytes"] < choice["baseline"]["size_bytes"]
    assert (winner["score_samples"], winner["score_judged"]) == (
        3 * 512,
        512,
    )  # recordings, not chunks: only the last of three has a label
    session = onnxruntime.InferenceSession(folder / "edgeopt-out" / "model.onnx")

    def score(count, seed):
        values, labels = tiny_stream.recordings(count, seed)
        state = np.zeros((1, count, tiny_stream.WIDTH), np.float32)
        for number in range(tiny_stream.CHUNKS):
            logits, state = session.run(None, {"chunk": values[:, number].numpy(), "state": state})
        return float((logits.argmax(1) == labels.numpy()).mean())

    assert winner["score"] == pytest.approx(score(512, 1000), abs=1e-9)
    assert choice["test"]["samples"] == 256
    assert choice["test"]["winner_score"] == pytest.approx(score(256, 2000), abs=1e-9)


def test_the_bundle_says_which_outputs_go_back(folder):
    chunk, state = json.loads((folder / "edgeopt-out" / "manifest.json").read_text())["inputs"]
    assert (chunk["next_value"], chunk["begins_with_zeros"]) == (None, None)
    assert (state["next_value"], state["begins_with_zeros"]) == ("next_state", True)
    assert state["value_range"] is None  # each file has its own


def test_the_python_sample_answers_for_a_whole_recording(folder, tmp_path):
    values, _ = tiny_stream.recordings(4, 1000)
    session = onnxruntime.InferenceSession(folder / "edgeopt-out" / "model.onnx")
    for number, recording in enumerate(values.numpy()):
        samples = np.rint(recording.ravel() / tiny_stream.PEAK * 2**15)
        (tmp_path / "sound.wav").write_bytes(encode_wav(samples.astype("<i2"), tiny_stream.RATE))
        state = np.zeros((1, 1, tiny_stream.WIDTH), np.float32)
        for chunk in recording:
            logits, state = session.run(None, {"chunk": chunk[None], "state": state})
        done = run_sample(folder / "edgeopt-out", tmp_path / "sound.wav")
        assert done.returncode == 0, done.stderr
        check, best, *_ = done.stdout.splitlines()
        assert check == "self-test: passed"
        assert best.startswith(f"{logits.argmax()}: "), number


def test_the_score_is_checked_in_the_same_way(folder):
    done = edgeopt(
        folder, "check", "edgeopt-out", "--target", "tiny.toml", "--score", f"{TESTS / 'tiny_stream.py'}:task"
    )
    assert done.returncode == 0, done.stdout + done.stderr
