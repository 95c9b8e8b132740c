"""`edgeopt bench --providers --score`: the score of a file on each execution provider, next to its times."""

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from extra_provider import SPOILING, a_python_with_another_provider
from onnx import TensorProto, helper
from scored_task import write_scored_task
from tiny_models import a_network, write_quick_target

from edgeopt.bench.providers import PROCESSOR
from edgeopt.cli import main


def write_other_kinds(folder: Path) -> None:
    """Write files that cannot be scored: no model, nothing at all, and one with an output that is a sequence."""
    (folder / "text.onnx").write_bytes(b"no model at all")
    (folder / "empty.onnx").write_bytes(b"")
    model = onnx.load(folder / "m.onnx")
    model.graph.node.append(helper.make_node("SequenceConstruct", [model.graph.output[0].name], ["list"]))
    model.graph.output.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None))
    onnx.save(model, folder / "sequence.onnx")


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """Return a function that runs `edgeopt bench` on a file in this process, so that PyTorch is loaded only once."""
    a_network(tmp_path / "m.onnx")
    write_quick_target(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, model: str = "m.onnx") -> subprocess.CompletedProcess:
        command = ["bench", model, "--target", "./quick.toml", *arguments]
        with pytest.raises(SystemExit) as ended:
            main(command)
        return subprocess.CompletedProcess(command, ended.value.code, *capsys.readouterr())

    return run


def scores(done) -> dict[str, dict]:
    """Return the score of each provider's row."""
    assert done.returncode == 0, done.stdout + done.stderr
    return {row["provider"]: row.get("score") for row in json.loads(done.stdout)["rows"]}


def test_the_processor_alone_has_a_score_and_no_drop(tmp_path, bench):
    found = scores(bench("--providers", "cpu", "--score", write_scored_task(tmp_path, right=1820), "--json"))
    score = found[PROCESSOR]
    assert (score["value"], score["samples"], score["drop"], score["drop_ci95"]) == (0.91, 2000, 0.0, None)
    assert score["ci95"][0] < 0.91 < score["ci95"][1]
    assert score["task"] == "scored.py:Scored"


def test_another_provider_has_its_drop_from_the_processors_score_with_a_paired_interval(tmp_path, bench):
    device = a_python_with_another_provider(tmp_path, -1.0)
    task = write_scored_task(tmp_path, right=1820)
    done = bench("--providers", "cpu,spoiling", "--device", device, "--score", task, "--json")
    found = scores(done)
    assert list(found) == [PROCESSOR, SPOILING]
    assert found[PROCESSOR]["value"] == 0.91
    spoilt = found[SPOILING]
    assert spoilt["value"] < 0.2
    assert spoilt["drop"] == pytest.approx(0.91 - spoilt["value"])
    low, high = spoilt["drop_ci95"]
    assert low < spoilt["drop"] < high < low + 0.1
    done = bench("--providers", "cpu,spoiling", "--device", device, "--score", task)
    line = next(line for line in done.stdout.splitlines() if line.startswith("│ Spoiling"))
    assert f"{spoilt['value']:.4f}" in line
    assert f"{spoilt['drop']:.4f} ({low:.4f} to {high:.4f})" in line
    assert "Scored by scored.py:Scored on 2,000 samples" in done.stdout


def test_a_provider_that_computes_the_same_has_no_drop_in_an_interval_of_zero(tmp_path, bench):
    device = a_python_with_another_provider(tmp_path, 1.0)
    found = scores(
        bench(
            "--providers",
            "cpu,spoiling",
            "--device",
            device,
            "--score",
            write_scored_task(tmp_path, right=1820),
            "--json",
        )
    )
    assert (found[SPOILING]["drop"], found[SPOILING]["drop_ci95"]) == (0.0, [0.0, 0.0])


def test_a_provider_that_does_not_run_the_file_has_no_score(tmp_path, bench):
    device = a_python_with_another_provider(tmp_path, 1.0, refuses=True)
    task = write_scored_task(tmp_path, right=1820)
    found = scores(bench("--providers", "cpu,spoiling", "--device", device, "--score", task, "--json"))
    assert (found[PROCESSOR]["value"], found[SPOILING]) == (0.91, None)
    assert (
        "this provider has no MatMul"
        in bench("--providers", "cpu,spoiling", "--device", device, "--score", task).stdout
    )


def test_a_given_file_without_labels_is_scored_by_its_agreement_with_the_processor(tmp_path, bench):
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((600, 32)).astype(np.float32))
    device = a_python_with_another_provider(tmp_path, -1.0)
    arguments = ("--providers", "cpu,spoiling", "--device", device, "--score", "m.onnx", "--data", "data.npz")
    found = scores(bench(*arguments, "--json"))
    assert found[PROCESSOR]["value"] > found[SPOILING]["value"]
    assert found[SPOILING]["drop"] == pytest.approx(found[PROCESSOR]["value"] - found[SPOILING]["value"])


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ({}, (), "--score shows the score on each execution provider: it goes with --providers."),
        (None, ("--providers", "all", "--data", "in.npz"), "--data goes with --score MODEL.onnx"),
        (None, ("--providers", "all", "--score", "m.onnx"), "--score m.onnx needs --data DATA"),
        (None, ("--providers", "all", "--score", "fashion"), "fashion has the inputs input, but m.onnx takes x. Give"),
        ({"width": 31}, ("--providers", "all"), "input 'x' has shape (512, 31) and type float32, but m.onnx takes"),
    ],
)
def test_a_score_that_cannot_be_taken_is_refused_before_anything_is_timed(tmp_path, bench, task, arguments, message):
    score = () if task is None else ("--score", write_scored_task(tmp_path, **{"right": 1820} | task))
    done = bench(*arguments, *score)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "timing" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("text.onnx", "text.onnx cannot be read as an ONNX model"),
        ("empty.onnx", "empty.onnx cannot be read as an ONNX model: it is empty."),
        ("sequence.onnx", "sequence.onnx: output 'list' is a sequence of float32 tensors; edgeopt takes tensors"),
    ],
)
def test_a_file_that_is_not_a_model_of_tensors_is_refused_in_a_sentence(tmp_path, bench, model, message):
    write_other_kinds(tmp_path)
    done = bench("--providers", "cpu", "--score", write_scored_task(tmp_path, right=1820), model=model)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())


def test_an_output_whose_type_the_file_does_not_say_is_scored(tmp_path, bench):
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.output[0].ClearField("type")
    onnx.save(model, tmp_path / "untyped.onnx")
    task = write_scored_task(tmp_path, right=1820)
    found = scores(bench("--providers", "cpu", "--score", task, "--json", model="untyped.onnx"))
    assert found[PROCESSOR]["value"] == 0.91


@pytest.mark.parametrize("table", [(), ("--providers", "all"), ("--threads", "1,2")])
def test_options_on_data_without_a_score_are_refused(bench, table):
    done = bench(*table, "--mean", "0.5", "--color", "bgr", "--state", "h=hn")
    assert (done.returncode, done.stdout) == (2, "")
    text = " ".join(done.stderr.replace("│", " ").split())
    assert "--mean and --color and --state would change nothing: such options say how --score MODEL.onnx" in text


def test_a_file_in_the_runtimes_own_format_is_refused(tmp_path, bench):
    task = write_scored_task(tmp_path, right=1820)
    (tmp_path / "m.onnx").rename(Path("m.ort"))
    with pytest.raises(SystemExit) as ended:
        main(["bench", "m.ort", "--target", "./quick.toml", "--providers", "cpu", "--score", task])
    assert ended.value.code == 2
