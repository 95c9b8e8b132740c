"""`edgeopt check --score`: the whole evaluation set of a bundle's task, run on a device."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scored_task import write_scored_task
from spoilt_python import a_spoilt_python
from test_check import check, lines
from tiny_bundles import a_bundle

from edgeopt.cli import main

RIGHT = 1820
"""Of 2,000: the score 0.91 that the bundle was written with, a drop of 0.005."""


@pytest.fixture
def check_here(monkeypatch, capsys):
    """Return a function that runs `edgeopt check` in this process, so that PyTorch is loaded only once."""

    def run(bundle: Path, *arguments: str) -> subprocess.CompletedProcess:
        monkeypatch.chdir(bundle.parent)
        command = ["check", bundle.name, "--target", "./quick.toml", *arguments]
        with pytest.raises(SystemExit) as ended:
            main(command)
        return subprocess.CompletedProcess(command, ended.value.code, *capsys.readouterr())

    return run


def found(done) -> dict:
    return json.loads(done.stdout)


def text_of(done, kind: str, name: str) -> str:
    return next(line for line in done.stdout.splitlines() if line.split()[1:3] == [kind, name]).split(maxsplit=3)[3]


def test_the_score_on_the_device_is_shown_next_to_the_builds_and_judged_by_the_limit(tmp_path):
    bundle = a_bundle(tmp_path)
    done = check(bundle, "--score", write_scored_task(tmp_path, right=RIGHT))
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines(done)["score"] == "passed"
    assert text_of(done, "score", "scored.py:Scored") == (
        "scores 0.9100 (95 %: 0.8975 to 0.9225) on 2,000 samples; 0.9100 on local: when it was built"
    )
    assert text_of(done, "limit", "score") == "a drop of 0.0050, at most 0.01"


def test_a_score_that_falls_too_far_ends_with_3(tmp_path, check_here):
    bundle = a_bundle(tmp_path)
    done = check_here(bundle, "--score", write_scored_task(tmp_path, right=1780), "--json")
    assert done.returncode == 3, done.stderr
    score = found(done)["score"]["score"]
    assert (score["value"], score["samples"]) == (0.89, 2000)
    assert score["drop"] == pytest.approx(0.025)
    missed = [finding["name"] for finding in found(done)["findings"] if finding["status"] == "missed"]
    assert missed == ["score"]


def test_the_interval_of_the_builds_drop_shifts_with_the_score_and_its_upper_end_decides(tmp_path, check_here):
    bundle = a_bundle(tmp_path, drop_ci95=(0.001, 0.009))
    done = check_here(bundle, "--score", write_scored_task(tmp_path, right=RIGHT - 4), "--json")
    assert done.returncode == 3, done.stdout
    score = found(done)["score"]
    assert score["score"]["drop"] == pytest.approx(0.007)
    assert score["score"]["drop_ci95"] == pytest.approx([0.003, 0.011])
    assert score["ci95"][0] < 0.908 < score["ci95"][1]
    limit = next(finding for finding in found(done)["findings"] if finding["name"] == "score")
    assert (limit["status"], limit["found"], limit["allowed"]) == ("missed", pytest.approx(0.011), 0.01)
    assert limit["text"].endswith("within the noise")


def test_a_lowest_score_is_judged_too(tmp_path, check_here):
    bundle = a_bundle(tmp_path, min_score=0.9, max_score_drop=None)
    assert lines(check_here(bundle, "--score", write_scored_task(tmp_path, right=RIGHT)))["score"] == "passed"
    assert lines(check_here(bundle, "--score", write_scored_task(tmp_path, right=1790)))["score"] == "missed"


def test_the_score_is_measured_on_the_device_and_not_on_this_machine(tmp_path, check_here):
    bundle = a_bundle(tmp_path)
    task = write_scored_task(tmp_path, right=RIGHT)
    done = check_here(bundle, "--score", task, "--device", a_spoilt_python(tmp_path, -1.0), "--json")
    assert done.returncode == 3
    assert found(done)["score"]["score"]["value"] < 0.2
    assert found(done)["score"]["built"] == 0.91


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ({"width": 31}, (), "scored.py:Scored: input 'x' has shape (512, 31) and type float32, but the bundle's model"),
        ({"samples": 1000}, (), "scored.py:Scored has 1,000 evaluation samples, but the build had 2,000"),
        (None, ("--score", "fashoin"), "there is no ready task 'fashoin' (did you mean 'fashion'?)"),
        (None, ("--score", "fashion"), "fashion has the inputs input, but the bundle's model takes x"),
        (None, ("--score", "m.onnx"), "--score m.onnx needs --data DATA"),
        (None, ("--data", "in.npz"), "--data goes with --score MODEL.onnx"),
        ({}, ("--data", "in.npz"), "--data goes with a bare .onnx model; the task 'scored.py:Scored' brings its own"),
        (None, ("--score", "m.onnx", "--data", "other.npz"), "without labels the score is the agreement with the file"),
    ],
)
def test_a_task_or_data_that_does_not_fit_is_bad_input_and_nothing_runs(tmp_path, check_here, task, arguments, message):
    bundle = a_bundle(tmp_path)
    np.savez(tmp_path / "other.npz", x=np.zeros((5000, 32), np.float32))  # 2,000 of them select
    score = () if task is None else ("--score", write_scored_task(tmp_path, **{"right": RIGHT} | task))
    done = check_here(bundle, *score, *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert "golden" not in done.stderr


def test_a_task_whose_inputs_have_other_names_is_refused(tmp_path, check_here):
    bundle = a_bundle(tmp_path)
    task = write_scored_task(tmp_path, right=RIGHT)
    source: Path = tmp_path / "scored.py"
    source.write_text(source.read_text().replace('("x",)', '("image",)'))
    done = check_here(bundle, "--score", task)
    assert done.returncode == 2
    assert "has the inputs image, but the bundle's model takes x" in " ".join(done.stderr.split())
