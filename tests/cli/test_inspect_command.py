"""`edgeopt inspect` as people run it, on a file and on a task."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import a_network

TESTS = Path(__file__).parents[1]


def inspect(*arguments, cwd=None):
    command = [sys.executable, "-m", "edgeopt", "inspect", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "160", "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return a_network(tmp_path_factory.mktemp("model") / "m.onnx", width=256, layers=3, inputs=("N", 128))


@pytest.fixture(scope="module")
def of_model(model):
    done = inspect(model, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def of_task():
    done = inspect(TESTS / "tiny_task.py:task", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_files_facts_are_counted(of_model):
    weights = 128 * 256 + 2 * 256 * 256
    assert of_model["schema"] == "edgeopt/inspect-model-1"
    assert of_model["parameters"] == of_model["macs"] == weights
    assert of_model["operators"] == {"MatMul": 3, "Relu": 3}
    assert (of_model["opset"], of_model["ir_version"]) == (17, 8)
    assert of_model["inputs"] == [{"name": "x", "shape": ["N", 128], "dtype": "float32"}]


def test_nodes_come_slowest_first_with_their_provider_and_ratios_that_add_up(of_model):
    nodes = of_model["nodes"]
    assert [node["ns"] for node in nodes] == sorted((node["ns"] for node in nodes), reverse=True)
    assert sum(node["time_ratio"] for node in nodes) == pytest.approx(1)
    assert {node["provider"] for node in nodes} == {"CPUExecutionProvider"}
    assert of_model["providers"] == {"CPUExecutionProvider": {"nodes": len(nodes), "time_ratio": pytest.approx(1)}}
    assert of_model["run_ms"] > 0


def test_tensors_come_largest_first_with_their_ratio_of_the_file(of_model, model):
    first, second, third = of_model["tensors"]
    assert {first["name"], second["name"]} == {"w1", "w2"}
    assert (third["name"], third["shape"], third["dtype"]) == ("w0", [128, 256], "FLOAT")
    assert 4 * 256 * 256 < first["stored_bytes"] < 4 * 256 * 256 + 50
    assert first["size_ratio"] == pytest.approx(first["stored_bytes"] / model.stat().st_size)


def test_the_values_of_constant_nodes_count_as_tensors_of_the_file(tmp_path):
    value = numpy_helper.from_array(np.ones((64, 64), np.float32))
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=value), helper.make_node("MatMul", ["x", "c"], ["y"])],
        "constant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
    )
    path = tmp_path / "constant.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    found = json.loads(inspect(path, "--json").stdout)
    assert [(tensor["name"], tensor["shape"]) for tensor in found["tensors"]] == [("c", [64, 64])]


def test_people_get_tables_on_stdout(model):
    done = inspect(model)
    assert done.returncode == 0, done.stderr
    for part in ("MACs per sample", "slowest nodes", "largest tensors", "run by CPUExecutionProvider", "MatMul 3"):
        assert part in done.stdout
    assert "inspect: reading the file" in done.stderr


def test_debug_messages_are_on_stderr_with_verbose(model):
    done = inspect(model, "--json", "--verbose")
    assert json.loads(done.stdout)["schema"] == "edgeopt/inspect-model-1"
    assert "edgeopt.pipeline.inspect: profiling " in done.stderr


def test_a_tasks_groups_have_channels_importance_and_the_reason_why_they_are_frozen(of_task):
    groups = {group["name"]: group for group in of_task["groups"]}
    assert of_task["schema"] == "edgeopt/inspect-task-1"
    frozen = [group for group in groups.values() if group["frozen_by"]]
    assert [(group["channels"], group["importance"]) for group in frozen] == [(4, [])]
    assert "output" in frozen[0]["frozen_by"]
    free = [group for group in groups.values() if not group["frozen_by"]]
    assert of_task["latency_source"].startswith("a quick profile in PyTorch")
    assert all(0 < group["latency_ratio"] <= 1 for group in free)
    assert of_task["free_channels"] == sum(group["channels"] for group in free)
    assert all(len(group["importance"]) == group["channels"] for group in free)


def test_the_parameters_of_a_channel_are_all_numbers_that_go_with_it(of_task):
    stem, body = [group for group in of_task["groups"] if not group["frozen_by"]]
    # a row of the convolution, two numbers of its batch norm, and a column of the layer that reads the channel: the
    # sum with the skip connection is merged into the second convolution
    assert stem["parameters_a_channel"] == 9 + 2 + 9 * body["channels"]
    assert body["parameters_a_channel"] == 9 * stem["channels"] + 2 + 4 * 4


def test_the_table_of_a_task_names_its_groups():
    done = inspect(TESTS / "tiny_task.py:task")
    assert done.returncode == 0, done.stderr
    assert "channels that can go" in done.stdout
    assert "frozen by" in done.stdout


@pytest.mark.parametrize(
    ("subject", "code", "text"),
    [
        ("none.onnx", 2, "there is no file none.onnx"),
        ("broken.onnx", 2, "broken.onnx"),
        ("nowhere.py:task", 2, "nowhere.py"),
        ("fashon", 2, "fashion"),
    ],
)
def test_a_subject_that_cannot_be_inspected_gives_one_paragraph_and_an_exit_code(tmp_path, subject, code, text):
    (tmp_path / "broken.onnx").write_bytes(b"this is no protobuf")
    done = inspect(subject, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
