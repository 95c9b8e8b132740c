"""`edgeopt check` on bundles of a real small model."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from app_bundles import write_app_bundle
from stream_bundles import write_stream_bundle
from tiny_bundles import AN_ORT_FILE, a_bundle
from tiny_models import a_network, write_quick_target

from edgeopt.pipeline.verify.findings import CheckFinding, CheckResult
from edgeopt.pipeline.verify.formats import to_junit


def check(bundle: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "edgeopt", "check", bundle.name, "--target", "./quick.toml", *arguments]
    return subprocess.run(command, cwd=bundle.parent, capture_output=True, text=True, timeout=120)


def lines(done: subprocess.CompletedProcess) -> dict[str, str]:
    """Return the status of each finding by its name."""
    return {line.split()[2]: line.split()[0] for line in done.stdout.splitlines()[:-1]}


def test_an_intact_bundle_passes_with_a_line_per_finding(tmp_path):
    done = check(a_bundle(tmp_path, min_throughput_per_s=1.0))
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines(done) == {
        "all": "passed", "y": "passed", "latency": "passed", "throughput": "passed", "memory": "passed",
        "size": "passed", "score": "note", "device": "note",
    }  # fmt: skip
    assert done.stdout.splitlines()[-1] == "out passes every check on local:"


def test_a_bundle_knows_its_target_where_no_file_of_it_is(tmp_path):
    bundle = a_bundle(tmp_path)
    (tmp_path / "quick.toml").unlink()
    command = [sys.executable, "-m", "edgeopt", "check", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert (manifest["target"], manifest["profile"]["timing"]["processes"]) == ("quick", 2)
    manifest["profile"]["pressure"] = 3
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "the bundle's target 'quick' was written by another version of edgeopt" in done.stderr
    assert "--target" in done.stderr


def test_a_streaming_model_is_checked_and_timed_on_one_chunk(tmp_path):
    write_quick_target(tmp_path)
    done = check(write_stream_bundle(tmp_path, generous=True), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    golden = {finding["name"]: finding["status"] for finding in result["findings"] if finding["kind"] == "golden"}
    assert golden == dict.fromkeys(("next_heard", "scores", "next_first", "answers"), "passed")
    assert result["measurement"]["batch_size"] == 1


def test_json_holds_the_findings_and_the_raw_samples(tmp_path):
    done = check(a_bundle(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["schema"], result["status"], result["device"]) == ("edgeopt/check-1", "passed", "local:")
    golden = next(finding for finding in result["findings"] if finding["kind"] == "golden")
    assert golden["found"] == 0.0 < golden["allowed"]
    assert len(result["measurement"]["timings"][0]["wall_ns"]) >= 20


@pytest.mark.parametrize(
    ("limit", "value", "name"),
    [("max_latency_ms", 1e-4, "latency"), ("max_peak_memory_bytes", 1000, "memory"), ("max_size_bytes", 9, "size")],
)
def test_a_missed_limit_ends_with_3(tmp_path, limit, value, name):
    out = a_bundle(tmp_path)
    choice = json.loads((out / "choice.json").read_text())
    choice["budget"][limit] = value
    (out / "choice.json").write_text(json.dumps(choice))
    rehash(out, "choice.json")
    done = check(out)
    assert done.returncode == 3
    assert [key for key, status in lines(done).items() if status == "missed"] == [name]
    assert done.stdout.splitlines()[-1] == "out misses an output or a limit on local:"


def test_the_size_limit_counts_the_runtime_that_the_target_states(tmp_path):
    out = a_bundle(tmp_path, runtime_size_bytes=1_500_000)
    (proof,) = (row for row in json.loads((out / "manifest.json").read_text())["proof"] if row["limit"] == "size")
    assert proof["label"] == "File size, with the runtime's 1.50 MB"
    assert proof["runtime_bytes"] == 1_500_000 < proof["found"]
    done = check(out)
    assert done.returncode == 0, done.stdout
    (line,) = (line for line in done.stdout.splitlines() if " size" in line)
    assert "MB, with the runtime's 1.50 MB, at most 2 MB" in line
    choice = json.loads((out / "choice.json").read_text())
    choice["budget"]["runtime_size_bytes"] = 1_999_999
    (out / "choice.json").write_text(json.dumps(choice))
    rehash(out, "choice.json")
    done = check(out)
    assert done.returncode == 3
    assert lines(done)["size"] == "missed"


def test_a_bundle_without_a_model_ends_with_3(tmp_path):
    done = check(a_bundle(tmp_path, max_size_bytes=1))
    assert done.returncode == 3
    assert lines(done) == {"all": "passed", "model.onnx": "missed"}


def test_outputs_beyond_their_tolerance_end_with_3(tmp_path):
    done = check(a_bundle(tmp_path, wrong=1e6))
    assert done.returncode == 3
    assert lines(done)["y"] == "missed"
    assert "is off by up to 1e+06" in done.stdout


def test_a_model_that_does_not_run_on_the_device_ends_with_3(tmp_path):
    out = a_bundle(tmp_path)
    (out / "model.onnx").write_bytes(b"no model")
    rehash(out, "model.onnx")
    done = check(out)
    assert done.returncode == 3
    assert lines(done)["model.onnx"] == "missed"


def test_the_file_in_the_runtimes_own_format_is_run_on_the_golden_inputs_too(tmp_path):
    done = check(a_bundle(tmp_path, ort=AN_ORT_FILE))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"passed  golden  model\.ort: y +is off by up to", done.stdout)


@pytest.mark.parametrize(("onnxruntime", "status"), [(AN_ORT_FILE.onnxruntime, "missed"), ("99.1.0", "note")])
def test_such_a_file_that_does_not_run_is_missed_unless_another_runtime_made_it(tmp_path, onnxruntime, status):
    out = a_bundle(tmp_path, ort=msgspec.structs.replace(AN_ORT_FILE, onnxruntime=onnxruntime))
    (out / "model.ort").write_bytes(b"no model")
    rehash(out, "model.ort")
    done = check(out)
    assert done.returncode == (3 if status == "missed" else 0)
    assert lines(done)["model.ort"] == status
    assert ("it was made with onnxruntime 99.1.0" in done.stdout) == (status == "note")


def rehash(out: Path, name: str) -> None:
    """Update the manifest, so that a changed file has the hash that it gives."""
    manifest = json.loads((out / "manifest.json").read_text())
    data = (out / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (out / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "name", "text"),
    [
        (lambda out: (out / "model.onnx").write_bytes(b"x"), "model.onnx", "was changed"),
        (lambda out: (out / "golden" / "output-0.bin").unlink(), "golden/output-0.bin", "is missing"),
        (lambda out: (out / "more").write_text(""), "more", "was added"),
    ],
)
def test_a_changed_bundle_is_not_run_and_ends_with_2(tmp_path, spoil, name, text):
    out = a_bundle(tmp_path)
    spoil(out)
    done = check(out)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"bad     file    {name}  {text}",
        "out is not the bundle that was built; nothing was run",
    ]


def test_a_golden_file_outside_of_the_bundle_is_not_read(tmp_path):
    out = a_bundle(tmp_path)
    manifest = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(manifest.replace('"file": "golden/input-0.bin"', '"file": "../in.npz"'))
    done = check(out)
    assert done.returncode == 2
    assert "../in.npz  is not in the manifest" in done.stdout


def test_a_folder_that_is_not_a_bundle_ends_with_2(tmp_path):
    (tmp_path / "empty").mkdir()
    write_quick_target(tmp_path)
    done = check(tmp_path / "empty")
    assert done.returncode == 2
    assert "manifest.json cannot be read" in done.stderr


def test_ci_gets_junit_and_a_table_with_the_comparison_with_the_last_release(tmp_path):
    (tmp_path / "released").mkdir()
    new, old = a_bundle(tmp_path), a_bundle(tmp_path / "released")
    files = ("--junit", "check.xml", "--summary", "summary.md")
    done = check(new, "--against", str(old), "--max-regression", "400", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines(done)["release-size"] == "passed"
    assert "as large as" in done.stdout
    suite = ElementTree.parse(tmp_path / "check.xml").getroot()[0]
    assert suite.get("name") == "out on local:"
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    names = [(case.get("classname"), case.get("name")) for case in suite]
    assert ("edgeopt.against", "release-latency") in names
    assert ("edgeopt.golden", "y") in names
    table = (tmp_path / "summary.md").read_text()
    assert table.startswith("### out passes every check on local:\n")
    assert "| ✅ | against | release-latency |" in table


def test_a_larger_file_than_the_last_release_fails_and_is_a_failure_for_junit(tmp_path):
    new = a_bundle(tmp_path)
    a_network(tmp_path / "small.onnx", width=8)
    done = check(new, "--against", str(tmp_path / "small.onnx"), "--max-regression", "5", "--junit", "check.xml")
    assert done.returncode == 3
    line = next(line for line in done.stdout.splitlines() if "release-size" in line)
    assert line.startswith("missed")
    assert "up to 5 % more is allowed" in line
    failures = ElementTree.parse(tmp_path / "check.xml").getroot().findall(".//failure")
    assert any("larger than" in failure.get("message") for failure in failures)


def test_of_several_devices_each_is_checked_and_the_worst_counts(tmp_path):
    out = a_bundle(tmp_path)
    done = check(out, "--device", "local:", "--device", "ssh://nobody@no-such-host.invalid", "--json")
    assert done.returncode == 3, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [result["status"] for result in results] == ["passed", "missed"]
    assert results[1]["findings"][0]["kind"] == "device"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--max-regression", "5"), "--max-regression goes with --against RELEASE."),
        (("--against", "."), "--against . is neither a bundle with a model.onnx nor an .onnx file."),
    ],
)
def test_a_comparison_without_another_file_is_refused(tmp_path, arguments, reason):
    done = check(a_bundle(tmp_path), *arguments)
    assert done.returncode == 2
    assert reason in " ".join(done.stderr.split())


def test_an_answer_that_changed_is_missed(tmp_path):
    out = write_app_bundle(tmp_path, "images")
    write_quick_target(tmp_path)
    manifest = json.loads((out / "manifest.json").read_text())
    answer = manifest["answers"][0]
    answer["class_index"] = (answer["class_index"] + 1) % 3
    (out / "manifest.json").write_text(json.dumps(manifest))
    done = check(out)
    assert done.returncode == 3
    assert lines(done)["answers"] == "missed"


def test_boxes_that_are_missing_or_new_are_missed(tmp_path):
    out = write_app_bundle(tmp_path, "boxes")
    write_quick_target(tmp_path)
    done = check(out)
    assert lines(done)["answers"] == "passed", done.stdout + done.stderr
    assert "7 boxes of the golden inputs are those of the build" in done.stdout
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["answers"][1]["box"]["corners"][2] += 2
    (out / "manifest.json").write_text(json.dumps(manifest))
    done = check(out)
    assert done.returncode == 3
    assert lines(done)["answers"] == "missed"
    assert "1 of 7 boxes of the golden inputs are missing or off, and 1 are new" in done.stdout


def test_a_release_with_other_inputs_is_a_miss_and_loses_no_finding(tmp_path):
    out = a_bundle(tmp_path)
    a_network(tmp_path / "other.onnx", inputs=("N", 7))
    done = check(out, "--against", str(tmp_path / "other.onnx"), "--max-regression", "5", "--junit", "check.xml")
    assert done.returncode == 3, done.stderr
    assert lines(done)["release"] == "missed"
    assert lines(done)["latency"] == "passed"
    assert (tmp_path / "check.xml").is_file()


def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    done = check(a_bundle(tmp_path), "--junit", "nowhere/check.xml")
    assert done.returncode == 2
    assert "is not a folder. Make it first." in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_junit_has_no_characters_that_xml_forbids():
    finding = CheckFinding(kind="golden", name="y", status="missed", text="\x1b[1;31mred\x1b[m and \x00 nothing")
    result = CheckResult(
        bundle="out", target="t", device="local:", status="missed", findings=(finding,), measurement=None, score=None
    )
    failure = ElementTree.fromstring(to_junit([result]).split("?>", 1)[1]).find(".//failure")
    assert failure.get("message") == "y red and  nothing"
