import json
import subprocess
import sys

import pytest
from tiny_models import a_network

from edgeopt.records.codec import from_json
from edgeopt.records.measurement import Comparison, Measurement

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


def test_json_alone_is_on_stdout_with_statistics_and_raw_samples(bench, tmp_path):
    a_network(tmp_path / "m.onnx")
    a_network(tmp_path / "o.onnx", layers=6, width=256)
    done = bench("m.onnx", "--target", "./quick.toml", "--against", "o.onnx", "--json")
    assert done.returncode == 0, done.stderr
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
        "p90 with its",
        "limit 1000 ms kept",
        "at batch 1",
        "CPUExecutionProvider 4",
        "stands in",
        "onnxruntime",
    ):
        assert part in done.stdout
    assert "timing" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("none.onnx", "--target", "./quick.toml"), 2, "none.onnx"),
        (("m.onnx", "--target", "./quick.toml", "--device", "gopher://host"), 2, "no kind of device 'gopher'"),
        (("broken.onnx", "--target", "./quick.toml"), 1, "Protobuf"),
        (("m.onnx", "--target", "server-cuda"), 2, "onnxruntime-gpu"),
    ],
)
def test_what_cannot_be_measured_is_one_paragraph_and_an_exit_code(bench, tmp_path, arguments, code, said):
    a_network(tmp_path / "m.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"this is no protobuf")
    done = bench(*arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_nodes_that_changed_most_stand_below_the_verdict(bench, tmp_path):
    a_network(tmp_path / "m.onnx", width=256)
    a_network(tmp_path / "o.onnx", layers=6, width=256)
    done = bench("m.onnx", "--target", "./quick.toml", "--against", "o.onnx")
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("faster:") < done.stdout.index("what changed most") < done.stdout.index("all nodes")
