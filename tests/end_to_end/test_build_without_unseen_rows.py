"""``--drop-unseen-rows``: table rows that no training sample reads go, and the result says so."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from building import TESTS, choice_of, edgeopt, write_target

from edgeopt.export.to_onnx import export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unseen-rows")
    write_target(folder / "tiny.toml", precisions='["fp32"]')
    return folder


@pytest.fixture(scope="module")
def built(folder):
    task = f"{TESTS / 'text_task.py'}:task"
    done = edgeopt(folder, "build", task, "--target", "tiny.toml", "--quick", "--unknown-id", "tokens=1")
    assert done.returncode == 0, done.stderr
    return done, choice_of(folder)


def dropping(trial):
    return [step for step in trial["recipe"]["graph_steps"] if step["step"] == "drop-unseen-rows"]


def test_each_file_that_keeps_the_score_is_made_without_unseen_rows_and_the_smallest_wins(built):
    _, choice = built
    trials = choice["trials"]
    without = [trial for trial in trials if dropping(trial)]
    assert any(trial["recipe"]["torch_steps"] for trial in without)
    assert any(not trial["recipe"]["torch_steps"] for trial in without)
    for trial in without:
        assert trial["status"] == "measured"
        assert {parity["stage"] for parity in trial["parities"]} >= {"rows dropped"}
        others = [
            one
            for one in trials
            if one["recipe"]
            == trial["recipe"]
            | {"graph_steps": [step for step in trial["recipe"]["graph_steps"] if step["step"] != "drop-unseen-rows"]}
        ]
        assert others[0]["size_bytes"] > trial["size_bytes"]
    assert dropping(choice["winner"])


def test_the_step_alone_is_exact_on_words_of_the_data(built):
    for trial in built[1]["trials"]:
        for parity in trial["parities"]:
            if parity["stage"] == "rows dropped":
                assert parity["max_rel_error"] == 0.0


def test_result_and_bundle_say_what_was_dropped(built, folder):
    done, choice = built
    sentence = "301 of 4,000 rows kept, for the ids of 'tokens' that occur in the training data; every other id reads"
    assert sentence in choice["warnings"][-1]
    assert "the row of id 1. On new data with other ids" in choice["warnings"][-1]
    assert "301 of 4,000 rows kept" in " ".join(done.stdout.split())
    recipe = json.loads((folder / "edgeopt-out" / "manifest.json").read_text())["recipe"]
    table = recipe["graph_steps"][0]["tables"]["words.weight"]
    assert (table["kept"], table["rows"], table["unknown_id"]) == (301, 4000, 1)
    shipped = onnxruntime.InferenceSession(folder / "edgeopt-out" / "model.onnx")
    (known,) = shipped.run(None, {"tokens": np.full((1, 12), 1)})
    (unknown,) = shipped.run(None, {"tokens": np.full((1, 12), 2)})
    assert (known == unknown).all()


@pytest.mark.slow
def test_a_given_file_loses_rows_that_its_data_do_not_read(folder, built):
    import text_task

    torch.manual_seed(0)
    words, _ = text_task.texts(600, 5)
    net = text_task.TextNet().eval()
    names = {"input_names": ["tokens"], "output_names": ["logits"]}
    export(net, (words[:2],), folder / "net.onnx", **names, max_opset=18, max_ir=10)
    np.savez(folder / "data.npz", tokens=words.numpy())
    arguments = ("build", "net.onnx", "--data", "data.npz", "--target", "tiny.toml", "--quick", "--drop-unseen-rows")
    done = edgeopt(folder, *arguments, "--out", "given", "--max-drop", "none")
    assert done.returncode == 0, done.stderr
    choice = choice_of(folder, "given")
    assert dropping(choice["winner"])
    assert "every other id reads the mean of the dropped rows" in choice["warnings"][-1]
    tables = {tensor.name: tensor.dims for tensor in onnx.load(folder / "given" / "model.onnx").graph.initializer}
    assert not any(4000 in dims and len(dims) > 1 for dims in tables.values())
