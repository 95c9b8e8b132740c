"""`inspect` and `bench` on models as people have them: weights in other files, any names, types, broken files."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data
from test_bench_command import TARGET
from tiny_models import a_network

from edgeopt.cli import main


def run(folder, monkeypatch, capsys, *arguments):
    """Run a command in ``folder``; return its exit code, stdout and stderr."""
    monkeypatch.chdir(folder)
    (folder / "quick.toml").write_text(TARGET)
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "--target", "./quick.toml"])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.fixture
def edgeopt(tmp_path, monkeypatch, capsys):
    return lambda *arguments: run(tmp_path, monkeypatch, capsys, *arguments)


def in_two_files(path):
    model = onnx.load(path)
    convert_model_to_external_data(model, location="w.data", size_threshold=0)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_the_bytes_of_all_files_are_counted_and_a_missing_one_is_named(tmp_path, edgeopt, command):
    path = in_two_files(a_network(tmp_path / "m.onnx"))
    code, out, err = edgeopt(command, path, "--json")
    found = json.loads(out)
    assert (code, found["size_bytes"]) == (0, path.stat().st_size + (tmp_path / "w.data").stat().st_size), err
    assert "w.data" in found["notes"][0]
    (tmp_path / "w.data").unlink()
    code, out, err = edgeopt(command, path)
    assert (code, out) == (2, "")
    assert "w.data, and there is no such file" in err


@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_given_inputs_have_any_name_and_a_type_that_can_be_cast(tmp_path, edgeopt, command):
    weight = numpy_helper.from_array(np.ones((50, 3), np.float32), "w")
    ends = [
        helper.make_tensor_value_info("serving/x:0", TensorProto.INT64, ["n", "length"]),
        helper.make_tensor_value_info("0", TensorProto.FLOAT, ["n", "length", 3]),
    ]
    gather = helper.make_node("Gather", ["w", "serving/x:0"], ["0"])
    graph = helper.make_graph([gather], "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", **{"serving/x:0": np.ones((4, 7), np.int32), "labels": np.zeros(4)})
    code, out, err = edgeopt(command, "m.onnx", "--inputs", "in.npz", "--json")
    assert code == 0, err
    assert json.loads(out)["notes"] == ["'serving/x:0' cast from int32 to int64"]
    np.savez(tmp_path / "in.npz", **{"serving/x:0": np.full((4, 7), 0.5)})
    code, _, err = edgeopt(command, "m.onnx", "--inputs", "in.npz")
    assert code == 2
    assert "in.npz: 'serving/x:0' is float64, but the model takes int64" in err


@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_a_broken_model_is_named_without_the_name_of_a_stage(tmp_path, edgeopt, command):
    for content in (b"not a model", b"", b"version https://git-lfs.github.com/spec/v1\n"):
        (tmp_path / "m.onnx").write_bytes(content)
        code, out, err = edgeopt(command, "m.onnx")
        assert (code, out) == (2, "")
        assert "error: m.onnx" in err.replace("\n", " ")
        assert "Traceback" not in err


def test_operators_that_onnx_runtime_lacks_are_named(tmp_path, edgeopt):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Acme", ["x"], ["y"], domain="acme")], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    code, out, _ = edgeopt("inspect", "m.onnx")
    assert code == 0
    assert "acme.Acme" in out
    code, _, err = edgeopt("bench", "m.onnx")
    assert code == 2
    assert "m.onnx uses operators that ONNX Runtime does not have: acme.Acme" in err


def test_a_fixed_batch_size_is_named_with_the_option_to_give(tmp_path, edgeopt):
    a_network(tmp_path / "m.onnx", inputs=(3, 32))
    np.save(tmp_path / "in.npy", np.zeros((6, 32), np.float32))
    code, _, err = edgeopt("bench", "m.onnx", "--inputs", "in.npy")
    assert code == 2
    assert "fixed batch size of 3, not 2. Give --batch-size 3" in err
    assert edgeopt("bench", "m.onnx", "--inputs", "in.npy", "--batch-size", 3)[0] == 0


def test_macs_follow_the_shapes_of_given_inputs(tmp_path, edgeopt):
    kernel = numpy_helper.from_array(np.ones((8, 3, 5), np.float32), "w")
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "t"]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]  # fmt: skip
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [kernel])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", x=np.zeros((4, 3, 320), np.float32))
    code, out, err = edgeopt("inspect", "m.onnx", "--inputs", "in.npz", "--json")
    assert code == 0, err
    assert json.loads(out)["macs"] == 316 * 8 * 3 * 5
