"""A build whose winner has weights in few bits: half of plain int8's bytes, and the same parameters."""

import numpy as np
from building import choice_of, edgeopt, write_target
from tiny_models import a_convolution


def bits_of(trial):
    """Return the weight bits of a trial in static int8; 8 if it is plain."""
    quantized = [step for step in trial["recipe"]["graph_steps"] if step["step"] == "quantize"]
    return quantized[0].get("weight_bits", 8) if quantized else None


def test_convolutions_ship_in_few_bits_if_the_score_is_kept(tmp_path):
    write_target(tmp_path / "tiny.toml", precisions='["int8", "fp32"]')
    a_convolution(tmp_path / "model.onnx", channels=32, layers=3)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((96, 32, 8, 8)).astype(np.float32))
    done = edgeopt(tmp_path, "build", "model.onnx", "--data", "data.npz", "--target", "tiny.toml", "--quick", "--yes")
    assert done.returncode == 0, done.stderr
    choice = choice_of(tmp_path)
    trials = {bits_of(trial): trial for trial in choice["trials"] if trial["status"] == "measured"}
    winner = choice["winner"]
    assert bits_of(winner) in (4, 5, 6)
    assert winner["size_bytes"] < 0.85 * trials[8]["size_bytes"]
    assert winner["parameters"] == trials[8]["parameters"]
    assert not winner["misses"]
    assert "packed" in [parity["stage"] for parity in winner["parities"]]
    assert f"{bits_of(winner)}-bit weights, rounded by samples" in " ".join(done.stdout.split())
    checked = edgeopt(tmp_path, "check", "edgeopt-out", "--target", "tiny.toml")
    assert checked.returncode == 0, checked.stderr
