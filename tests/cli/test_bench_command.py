"""`edgeopt bench` as people run it, and its text."""

import json
import re
import statistics
import subprocess
import sys

import pytest
from builders import a_measurement
from tiny_models import a_network, a_quick_profile

from edgeopt.bench.memory_modes import MemoryMode
from edgeopt.bench.providers import PROCESSOR
from edgeopt.cli.bench_text import print_summary
from edgeopt.records.codec import from_json
from edgeopt.records.measurement import Comparison, Measurement, Sustained

TARGET = """
name = "quick"
title = "a quick phone"
device = "local:"
stand_in = true
providers = ["CPUExecutionProvider"]
threads = 1
allow_spinning = false
memory_arena = true
precisions = ["fp32"]
activation_type = "uint8"
channel_step = 8
max_opset = 20
max_ir = 9
min_onnxruntime = "1.17.0"
[timing]
processes = 2
warmup_runs = 2
warmup_seconds = 0.01
min_runs = 10
min_seconds = 0.02
max_seconds = 5.0
[limits]
max_latency_ms = 1000.0
latency_percentile = 90
batch_size = 2
min_throughput_per_s = "none"
max_peak_memory_bytes = "none"
max_size_bytes = "none"
size_metric = "file"
min_score = "none"
max_score_drop = 0.01
"""


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "quick.toml").write_text(TARGET)

    def run(*arguments):
        command = [sys.executable, "-m", "edgeopt", "bench", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return run


def test_only_json_is_on_stdout_with_statistics_and_raw_samples(bench, tmp_path):
    a_network(tmp_path / "m.onnx")
    a_network(tmp_path / "o.onnx", layers=6, width=256)
    done = bench("m.onnx", "--target", "./quick.toml", "--against", "o.onnx", "--json", "--verbose")
    assert done.returncode == 0, done.stderr
    assert "edgeopt.pipeline.bench_file: bench m.onnx for quick on local:" in done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "edgeopt/bench-1"
    assert document["latency_ms"]["limit_ci95"][0] <= document["latency_ms"]["limit"]
    assert document["against"]["verdict"] == "faster"
    assert {"name", "operator", "against_ns", "ns"} <= document["against"]["nodes"][0].keys()
    assert from_json(json.dumps(document["measurement"]), Measurement).batch_size == 2
    assert from_json(json.dumps(document["comparison"]), Comparison).clock == "cpu"


def test_the_table_names_what_was_measured(bench, tmp_path):
    a_network(tmp_path / "m.onnx")
    done = bench("m.onnx", "--target", "./quick.toml", "--batch-size", "1")
    assert done.returncode == 0, done.stderr
    for part in (
        "p90, with its",
        "limit 1000 ms kept",
        "at batch size 1",
        "CPUExecutionProvider 4",
        "stood in",
        "onnxruntime",
    ):
        assert part in done.stdout
    assert "timing" in done.stderr
    assert "edgeopt.pipeline" not in done.stderr  # no debug messages without --verbose


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("none.onnx", "--target", "./quick.toml"), 2, "none.onnx"),
        (("m.onnx", "--target", "./quick.toml", "--device", "gopher://host"), 2, "unknown kind of device 'gopher'"),
        (("broken.onnx", "--target", "./quick.toml"), 2, "broken.onnx cannot be read as an ONNX model"),
        (("m.onnx", "--target", "server-cuda"), 2, "onnxruntime-gpu"),
    ],
)
def test_a_file_that_cannot_be_measured_gives_one_paragraph_and_an_exit_code(bench, tmp_path, arguments, code, text):
    a_network(tmp_path / "m.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"this is no protobuf")
    done = bench(*arguments)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_largest_changes_are_below_the_verdict(bench, tmp_path):
    a_network(tmp_path / "m.onnx", width=256)
    a_network(tmp_path / "o.onnx", layers=6, width=256)
    done = bench("m.onnx", "--target", "./quick.toml", "--against", "o.onnx")
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("faster:") < done.stdout.index("largest changes") < done.stdout.index("all nodes")


def test_a_sustained_run_and_the_memory_modes_are_next_to_the_times(bench, tmp_path):
    a_network(tmp_path / "m.onnx", width=256)
    done = bench("m.onnx", "--target", "./quick.toml", "--sustained", "10", "--memory-modes", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["sustained"]["verdict"] in ("slower", "faster", "no difference")
    assert len(from_json(json.dumps(document["sustained_samples"]), Sustained).wall_ns) == 100
    assert document["provider_time_ratios"] == {"CPUExecutionProvider": 1.0}
    assert {(m["memory_arena"], m["prepacking"], m["weights"]) for m in document["memory_modes"]} == {
        (arena, packed, weights)
        for arena in (True, False)
        for packed in (True, False)
        for weights in ("copied", "mapped")
    }


def test_everything_that_was_asked_for_is_in_the_table(capsys, monkeypatch):
    """The numbers are made up: the test is that each of them is printed."""
    monkeypatch.setenv("COLUMNS", "200")
    mode = MemoryMode(
        memory_arena=False, prepacking=True, weights="mapped", load_peak_bytes=1_100_000, run_peak_bytes=2_200_000,
        load_mapped_bytes=100_000, run_mapped_bytes=330_000, run_cpu_ns=4_400_000,
    )  # fmt: skip
    sustained = {
        "seconds": 60.0, "last_over_first": 1.23, "ci95": (1.2, 1.3), "verdict": "slower", "clock": "cpu",
        "temperatures_c": (41.0, 66.0),
    }  # fmt: skip
    summary = {
        "model": "m.onnx", "notes": ("a note",), "batch_size": 1, "size_bytes": 5_000_000, "throughput_per_s": 7.0,
        "load_ms": 8.0,
        "latency_ms": {"p50": 1, "p90": 2, "p99": 3, "limit": 2, "limit_percentile": 90, "limit_ci95": (1.9, 2.1)},
        "providers": {"CUDAExecutionProvider": 9, "CPUExecutionProvider": 1}, "sustained": sustained,
        "provider_time_ratios": {"CUDAExecutionProvider": 0.25, "CPUExecutionProvider": 0.75}, "against": None,
        "memory_modes": (mode,), "estimate": None, "calibration_refused": "the calibration is old",
        "noise": {"few runs": 0.5},
    }  # fmt: skip
    print_summary(summary, a_quick_profile(affinity=(3,)), a_measurement())
    text = re.sub(r"[\s│┃]+", " ", capsys.readouterr().out)
    for part in (
        "it slows down beyond the noise: the last tenth takes 1.230 times as long as the first",
        "41 °C, 66 °C",
        "CUDAExecutionProvider 9 (25.0% of the time)",
        "1 thread on core 3",
        "off yes .ort, mapped 1.0 MB 1.9 MB 0.3 MB 4.40 ms",
        "the calibration is old",
        "Note: a note.",
        "50 % of the runs that the percentile needs",
    ):
        assert part in text, text


def test_batch_sizes_and_threads_are_a_table(bench, tmp_path):
    a_network(tmp_path / "m.onnx")
    done = bench("m.onnx", "--target", "quick.toml", "--batch", "1,4", "--threads", "1,2", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["batch_size"], row["threads"]) for row in rows] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    for row in rows:
        runs = [run for timing in row["measurement"]["timings"] for run in timing["wall_ns"]]
        assert row["throughput_per_s"] == pytest.approx(1e9 * row["batch_size"] * len(runs) / sum(runs))
        assert row["latency_ms"]["p50"] == pytest.approx(statistics.median(runs) / 1e6, rel=0.5)  # of each process
    done = bench("m.onnx", "--target", "quick.toml", "--batch", "1,4")
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("│")] == ["1", "4"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--batch", "1,x"), "are not whole numbers above 0"),
        (("--threads", "2", "--memory-modes"), "leave out --memory-modes"),
        (("--providers", "all", "--threads", "2", "--batch", "1"), "leave out --batch and --threads"),
    ],
)
def test_a_table_that_cannot_be_made_is_refused(bench, tmp_path, arguments, reason):
    a_network(tmp_path / "m.onnx")
    done = bench("m.onnx", "--target", "quick.toml", *arguments)
    assert done.returncode == 2
    assert reason in " ".join(done.stderr.replace("│", " ").split())


def test_each_execution_provider_is_a_row(bench, tmp_path):
    a_network(tmp_path / "m.onnx")
    done = bench("m.onnx", "--target", "quick.toml", "--providers", "all", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "edgeopt/bench-providers-1"
    row = document["rows"][0]
    assert (row["provider"], row["error"], row["difference"], row["operators"]) == (PROCESSOR, None, 0.0, {})
    assert row["providers"] == {PROCESSOR: row["measurement"]["providers"][PROCESSOR]}
    done = bench("m.onnx", "--target", "quick.toml", "--providers", "cpu")
    assert "by execution provider" in done.stdout
    done = bench("m.onnx", "--target", "quick.toml", "--providers", "tpu")
    assert done.returncode == 2
    assert "--providers tpu: local: has CPUExecutionProvider" in done.stderr
