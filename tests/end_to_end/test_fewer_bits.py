"""A build whose winner has weights in few bits: fewer bytes than plain int8, and the same parameters."""

import re

import numpy as np
from building import choice_of, edgeopt, write_target
from tiny_models import a_convolution


def bits_of(trial):
    """Return the fewest weight bits of a trial in static int8; 8 if it is plain, None if it is not quantized."""
    quantized = [step for step in trial["recipe"]["graph_steps"] if step["step"] == "quantize"]
    if not quantized:
        return None
    return min([bits for _, bits in quantized[0].get("bits_of", [])] or [quantized[0].get("weight_bits", 8)])


def test_convolutions_ship_in_few_bits_if_the_score_is_kept(tmp_path):
    write_target(tmp_path / "tiny.toml", precisions='["int8", "fp32"]')
    a_convolution(tmp_path / "model.onnx", channels=32, layers=3)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((96, 32, 8, 8)).astype(np.float32))
    done = edgeopt(tmp_path, "build", "model.onnx", "--data", "data.npz", "--target", "tiny.toml", "--quick", "--yes")
    assert done.returncode == 0, done.stderr
    choice = choice_of(tmp_path)
    plain = next(trial for trial in choice["trials"] if trial["status"] == "measured" and bits_of(trial) == 8)
    winner = choice["winner"]
    assert bits_of(winner) in (3, 4, 5, 6)
    assert winner["size_bytes"] < 0.85 * plain["size_bytes"]
    assert winner["parameters"] == plain["parameters"]
    assert not winner["misses"]
    assert "pack-weights" in [step["step"] for step in winner["recipe"]["graph_steps"]]
    assert [parity["stage"] for parity in winner["parities"]][-2:] == ["quantized", "final"]
    named = r"int8 \((?:weights in (\d)(?: to \d)? bits|(\d)-bit weights), rounded by samples\)"
    said = re.search(named, " ".join(done.stdout.split()))
    assert said is not None
    assert int(said[1] or said[2]) == bits_of(winner)
    checked = edgeopt(tmp_path, "check", "edgeopt-out", "--target", "tiny.toml")
    assert checked.returncode == 0, checked.stderr
