"""A detector from two loaders: built, scored by its mean average precision with an interval, checked again."""

import json

import pytest
import torch
from building import TESTS, choice_of, edgeopt, write_target
from safetensors.torch import save_file

pytest.importorskip("faster_coco_eval")

import box_scenes
import detector_task


@pytest.mark.slow
def test_a_detector_is_pruned_distilled_and_keeps_its_boxes_in_int8(tmp_path):
    torch.set_num_threads(1)
    model = detector_task.make_detector()
    task = detector_task.make_task(model)
    box_scenes.learn(model, task, epochs=25)
    assert box_scenes.score_of(model, task) > 0.9
    save_file(model.state_dict(), tmp_path / "detector.safetensors")
    weights = {"DETECTOR_WEIGHTS": str(tmp_path / "detector.safetensors")}
    write_target(tmp_path / "tiny.toml", max_score_drop="0.1", precisions='["int8", "fp32"]', channel_step="4")
    spec = f"{TESTS / 'detector_task.py'}:task"
    done = edgeopt(tmp_path, "build", spec, "--target", "tiny.toml", "--quick", **weights)
    assert done.returncode == 0, done.stderr
    choice = choice_of(tmp_path)
    winner = choice["winner"]
    low, high = winner["score_drop_ci95"]
    assert low < winner["score_drop"] < high <= 0.1
    assert winner["size_bytes"] < 0.5 * choice["baseline"]["size_bytes"]
    assert any(step["step"] == "distill" for step in winner["recipe"]["torch_steps"])
    assert any(step["step"] == "quantize" for step in winner["recipe"]["graph_steps"])
    manifest = json.loads((tmp_path / "edgeopt-out" / "manifest.json").read_text())
    assert [output["name"] for output in manifest["outputs"]] == ["heatmap", "sides"]
    assert (manifest["boxes"]["heatmap"], manifest["boxes"]["sides"]) == ("heatmap", "sides")
    assert manifest["boxes"]["stride"] == 4
    assert any(answer["box"]["is_certain"] for answer in manifest["answers"])
    checked = edgeopt(tmp_path, "check", "edgeopt-out", "--target", "tiny.toml", "--score", spec, **weights)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "95 %" in checked.stdout  # of the score, by a bootstrap over images
