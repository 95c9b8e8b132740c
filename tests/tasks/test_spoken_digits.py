"""Spoken digits: their data, the front end, and the network that is pruned behind it."""

import os
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeopt.errors import DataError
from edgeopt.passes.distill.epoch_choice import evaluate
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.task import CheckedTask, load_task
from edgeopt.tasks.networks.log_mel import ConvolutionLogMel, LogMel, mel_filters
from edgeopt.tasks.ready import fsdd
from edgeopt.tasks.ready.spoken_digits import (
    DigitNetwork,
    SpokenDigits,
    SpokenDigitsByConvolution,
    SpokenDigitsBySpeaker,
    SpokenDigitsRecurrent,
    word_tensors,
)
from edgeopt.tasks.ready.spoken_digits_streaming import (
    ChunkedWords,
    SpokenDigitsInChunks,
    SpokenDigitsStreaming,
    StreamingDigitNetwork,
)

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
needs_digits = pytest.mark.skipif(
    not (Path(os.environ.get("EDGEOPT_DATA", "/nowhere")) / "fsdd" / "recordings").is_dir(),
    reason="EDGEOPT_DATA has no spoken digits",
)


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """Write 3,000 recordings of a few samples; each begins with its digit and its take."""
    folder = tmp_path / "fsdd" / "recordings"
    folder.mkdir(parents=True)
    for digit in range(10):
        for speaker in SPEAKERS:
            for take in range(50):
                write_sound(folder / f"{digit}_{speaker}_{take}.wav", np.array([digit, take, 0, 0]) * 256)
    monkeypatch.setenv("EDGEOPT_DATA", str(tmp_path))
    return folder


def write_sound(path, samples, rate=fsdd.RATE):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, "<i2").tobytes())


@pytest.mark.parametrize(("split", "counts"), [("take", (2100, 600, 300)), ("speaker", (2000, 500, 500))])
def test_no_recording_is_in_two_parts(recordings, split, counts):
    parts = [fsdd.load_words(part, split) for part in ("train", "selection", "test")]
    assert tuple(len(part.labels) for part in parts) == counts
    for waves, labels in parts:
        assert waves.shape[1:] == (fsdd.RATE,)
        assert np.array_equal(np.rint(waves[:, 3998] * 128), labels)  # in the middle
    if split == "take":
        assert set(np.rint(parts[2].waves[:, 3999] * 128)) == set(range(5))


def test_a_long_recording_is_cut_in_the_middle(recordings):
    write_sound(recordings / "0_george_0.wav", np.arange(10_000))
    wave_of_it = fsdd.load_words("test").waves[0]
    assert np.array_equal(np.rint(wave_of_it[:3] * 2**15), [1000, 1001, 1002])


def test_damaged_recordings_are_named(recordings):
    (recordings / "0_george_0.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"0_george_0\.wav: cannot be read as a sound"):
        fsdd.load_words("test")
    write_sound(recordings / "0_george_0.wav", [0, 0], rate=16000)
    with pytest.raises(DataError, match="is not mono, 16 bits, 8000 Hz"):
        fsdd.load_words("test")
    (recordings / "0_george_0.wav").unlink()
    with pytest.raises(DataError, match="has 2999 recordings, not 3,000"):
        fsdd.load_words("test")


def test_without_data_it_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEOPT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"fetch_data\.py DIR fsdd"):
        fsdd.load_words("train")


def test_a_tone_is_loudest_in_its_band():
    front, time = LogMel(8000), torch.arange(8000) / 8000
    bands = front(torch.sin(2 * torch.pi * torch.tensor([[300.0], [1000.0], [2500.0]]) * time)).mean(-1)
    centres = [mel_filters(8000, 256, 40)[:, band].argmax() * 8000 / 256 for band in bands.argmax(1).tolist()]
    assert np.allclose(centres, [300, 1000, 2500], atol=60)


def test_channels_behind_the_front_end_can_go():
    groups = analyse(Network.trace(DigitNetwork(8, (8, 16, 16)).eval(), (torch.randn(2, 8000),)))
    free = {name for name in groups.free if not name.startswith("front")}
    assert {"network.stem.0", "network.stages.0.conv1", "network.stages.4.skip.0"} <= free
    assert not any(name.startswith("front") for name in groups.free)


def test_the_task_by_speaker_has_a_network_of_its_own(recordings):
    with pytest.raises(DataError, match=r"train_teacher\.py spoken_digits_by_speaker"):
        SpokenDigitsBySpeaker().build_model()


def train_two_epochs(model, task, rate):
    torch.set_num_threads(1)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for epoch in range(2):
        for inputs, labels in task.train_batches(epoch):
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


@needs_digits
def test_the_real_words_are_heard_after_two_epochs():
    torch.manual_seed(0)
    model = SpokenDigits.make_network(0.25)
    task = SpokenDigits(lambda: model)
    train_two_epochs(model, task, 3e-3)
    with torch.no_grad():
        found = task.score([(model(inputs).numpy(), labels.numpy()) for inputs, labels in task.eval_batches()])
    assert found > 0.5
    word_tensors.cache_clear()


def test_a_convolution_gives_the_same_bands_as_the_transform():
    waves = torch.randn(3, 8000, generator=torch.Generator().manual_seed(0))
    expected, found = LogMel(8000)(waves), ConvolutionLogMel(8000)(waves)
    assert found.shape == expected.shape == (3, 40, 101)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("task", "free"),
    [
        (SpokenDigitsByConvolution, {"front.waves", "network.stem.0", "network.stages.4.skip.0"}),
        (SpokenDigitsRecurrent, {"front.waves", "recurrent.weight_ih_l0", "recurrent.weight_ih_l0:1"}),
    ],
)
def test_further_networks_have_names_weights_and_channels_of_their_own(recordings, task, free):
    name = f"spoken_digits{task.suffix}"
    with pytest.raises(Exception, match=rf"train_teacher\.py {name}`"):
        _ = load_task(name).model
    torch.manual_seed(0)
    model = task.make_network(0.125).eval()
    groups = analyse(Network.trace(model, (torch.randn(2, 8000),)))
    assert free <= set(groups.free)
    outputs = model(torch.randn(2, 8000))
    assert outputs.shape == (2, 10)
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_chunks_are_heard_as_the_whole_word():
    torch.manual_seed(0)
    network = StreamingDigitNetwork(24, 32).eval()
    wave = torch.randn(2, 8000)
    bands = network.front(torch.cat([torch.zeros(2, 176), wave], 1))
    features = torch.relu(network.before(((bands + 5.0) / 2.5).transpose(1, 2)))
    outputs, _ = network.recurrent(features)
    expected = network.head(torch.relu(network.after(outputs[:, 79::10]))).mean(1)  # after 0.8, 0.9 and 1 second
    torch.testing.assert_close(ChunkedWords(network)(wave), expected, atol=1e-5, rtol=1e-4)


def test_layers_around_the_state_can_shrink_and_the_state_stays():
    network = StreamingDigitNetwork(24, 32).eval()
    inputs = {"chunk": torch.randn(3, 800), **network.first_states(3)}
    groups = analyse(Network.trace(network, tuple(inputs.values())))
    assert {"before", "after"} <= set(groups.free)
    assert not any(name.startswith("recurrent") for name in groups.free)


@needs_digits
def test_a_streaming_network_hears_real_words_chunk_by_chunk():
    torch.manual_seed(0)
    words = SpokenDigitsInChunks.make_network(0.5)
    train_two_epochs(words, SpokenDigitsInChunks(lambda: words), 4e-3)
    task = CheckedTask(SpokenDigitsStreaming(lambda: words.network), "tests")
    assert task.states == {"past": "next_past", "state": "next_state"}
    assert evaluate(words.network, task) > 0.5  # a tenth by chance
    first, *_ = task.train_epoch(0)
    assert first[0][0].shape == (32, 800)
    word_tensors.cache_clear()
