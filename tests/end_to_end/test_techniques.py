"""Techniques that a build uses only for networks that need them, each in its own workspace."""

import onnx
import pytest
from building import TESTS, choice_of, edgeopt, write_target


@pytest.mark.slow
def test_wide_layers_are_factorized_if_it_pays_off_and_sparse_trials_are_smaller_than_their_parent(tmp_path):
    write_target(tmp_path / "tiny.toml", size_metric='"download"')
    mlp = f"{TESTS / 'tiny_mlp.py'}:task"
    done = edgeopt(tmp_path, "build", mlp, "--target", "tiny.toml")
    assert done.returncode == 0, done.stderr
    choice = choice_of(tmp_path)
    low = [t for t in choice["trials"] if any(step["step"] == "low-rank" for step in t["recipe"]["torch_steps"])]
    # No channel of this network can be removed, and its weight matrices are close to low rank.
    assert low, choice["notes"]
    sparse = [t for t in choice["trials"] if any(step["step"] == "sparsify" for step in t["recipe"]["torch_steps"])]
    for trial in (*low, *sparse):
        parent = choice["trials"][trial["parent"]]
        assert trial["download_bytes"] < parent["download_bytes"]
        assert f"Trial {trial['number']} is trial {parent['number']} with " in (done.stdout.replace("\n", " "))
    for trial in low:
        assert trial["parameters"] < 0.75 * choice["baseline"]["parameters"]
        assert any(note.startswith("low rank: each layer lost at most ") for note in trial["notes"])
        assert trial["status"] == "measured"
    assert "is trial" in (tmp_path / "edgeopt-out" / "report.html").read_text()


def test_if_int8_ruins_the_score_a_network_trained_for_int8_keeps_the_limit_at_the_same_size(tmp_path):
    unpruned = {"channel_step": "48", "precisions": '["int8", "fp32"]'}  # without pruning, which takes minutes
    packs_nothing = {"graph_level": '"disabled"'}  # with weights in few bits, mixed precision is smaller than int8
    write_target(tmp_path / "tiny.toml", max_score_drop="0.06", **unpruned, **packs_nothing)
    done = edgeopt(tmp_path, "build", f"{TESTS / 'tiny_spread.py'}:harmed", "--target", "tiny.toml", "--quick")
    assert done.returncode == 0, done.stderr
    choice = choice_of(tmp_path)
    int8 = [t for t in choice["trials"] if any(step["step"] == "quantize" for step in t["recipe"]["graph_steps"])]
    plain = next(trial for trial in int8 if not trial["recipe"]["torch_steps"])
    aware = next(trial for trial in int8 if "quantize-aware" in str(trial["recipe"]["torch_steps"]))
    assert [miss["limit"] for miss in plain["misses"]] == ["score"]
    assert not aware["misses"]
    assert aware["score"] > plain["score"] + 0.1
    assert aware["size_bytes"] <= 1.02 * plain["size_bytes"]
    assert aware["parities"][-1]["stage"] == "trained for"
    assert "taught by the original network of tiny-spread." in " ".join(done.stdout.split())


def test_if_time_is_preferred_a_network_may_shrink_its_image_inside_and_its_file_takes_the_same_inputs(tmp_path):
    write_target(tmp_path / "tiny.toml", channel_step="32", precisions='["fp32"]')
    coarse = f"{TESTS / 'coarse_task.py'}:task"
    done = edgeopt(tmp_path, "build", coarse, "--target", "tiny.toml", "--prefer", "latency", PYTHONPATH=str(TESTS))
    assert done.returncode == 0, done.stderr
    choice = choice_of(tmp_path)
    lower = [one for one in choice["trials"] if "lower-resolution" in str(one["recipe"]["torch_steps"])]
    steps = [trial["recipe"]["torch_steps"][0] for trial in lower if trial["recipe"]["graph_steps"]]
    assert {(step["height"], step["width"]) for step in steps} == {(24, 24), (16, 16)}
    for trial in lower:
        assert trial["status"] == "measured"
        assert f"Trial {trial['number']} is trial {trial['parent']} with the image shrunk to " in words_of(done.stdout)
        file = tmp_path / ".edgeopt" / "artifacts" / f"{trial['sha256']}.onnx"
        (given,) = onnx.load(file).graph.input
        assert [dim.dim_value for dim in given.type.tensor_type.shape.dim][1:] == [1, 32, 32]
    half = next(one for one in lower if one["recipe"]["torch_steps"][0]["height"] == 16)
    assert half["macs"] < 0.3 * choice["baseline"]["macs"]


def words_of(text):
    return " ".join(text.split())
