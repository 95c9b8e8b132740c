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


def a_file(path, node, shape, *weights):
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape), helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], list(weights))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_without_inputs_a_file_is_run_on_made_up_ones_which_the_result_names(tmp_path, edgeopt):
    kernel = numpy_helper.from_array(np.ones((8, 3, 5), np.float32), "w")
    a_file(tmp_path / "m.onnx", helper.make_node("Conv", ["x", "w"], ["y"]), ["n", 3, "t"], kernel)
    for arguments, length in ((), 128), (("--shape", "x=1x3x320"), 320):
        code, out, err = edgeopt("inspect", "m.onnx", "--json", *arguments)
        found = json.loads(out)
        assert (code, found["macs"]) == (0, (length - 4) * 8 * 3 * 5), err
        assert found["run_ms"] > 0
        assert found["notes"] == ([] if arguments else ["made-up inputs: 'x' shape 2x3x128"])
    assert edgeopt("bench", "m.onnx")[0] == 0
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 9), np.float32))
    code, _, err = edgeopt("bench", "m.onnx", "--inputs", "x.npy", "--shape", "x=1x3x320")
    assert code == 2
    assert "--shape is for made-up inputs" in err


def test_a_file_that_cannot_run_on_made_up_inputs_is_still_shown(tmp_path, edgeopt):
    sizes = numpy_helper.from_array(np.array([-1, 7]), "s")
    a_file(tmp_path / "m.onnx", helper.make_node("Reshape", ["x", "s"], ["y"]), ["n", "t", 2], sizes)
    code, out, _ = edgeopt("inspect", "m.onnx", "--json")
    found = json.loads(out)
    assert (code, found["run_ms"], found["nodes"]) == (0, None, [])
    assert found["not_run"].startswith("on made-up inputs: ONNX Runtime cannot run m.onnx")
    assert found["not_run"].endswith("If these do not fit, pass --inputs FILE.npz, or --shape.")
    code, out, _ = edgeopt("inspect", "m.onnx", "--shape", "x=1x7x2", "--json")
    assert (code, json.loads(out)["run_ms"] > 0) == (0, True)


@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_inputs_are_a_folder_or_a_function_too(tmp_path, edgeopt, command):
    a_file(tmp_path / "m.onnx", helper.make_node("Relu", ["x"], ["y"]), ["n", "t"])
    (tmp_path / "data").mkdir()
    for number in range(2):
        np.save(tmp_path / "data" / f"{number}.npy", np.zeros(5, np.float32))
    (tmp_path / "own.py").write_text("def rows():\n    yield [1.0, 2.0]\n    yield [3.0, 4.0]\n")
    for source in ("data", "own.py:rows"):
        code, _, err = edgeopt(command, "m.onnx", "--inputs", source)
        assert code == 0, err
    code, _, err = edgeopt(command, "m.onnx", "--inputs", "nothing.npz")
    assert code == 2
    assert "nothing.npz cannot be read as an .npz file of arrays: No such file or directory" in " ".join(err.split())
