from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_files import accumulator
from tiny_models import a_network, a_run_target

from edgeopt.bench.outputs import read_batches, run_arrays, run_model, write_batches
from edgeopt.device.arrays import read_records, write_records
from edgeopt.errors import DataError, StepError


def test_outputs_come_back_batch_by_batch_in_order(tmp_path):
    model = a_network(tmp_path / "m.onnx", layers=1, width=8)
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((rows, 32)).astype(np.float32)} for rows in (4, 1, 3, *[2] * 9)]
    count = write_batches(tmp_path / "in.npz", iter(batches))
    run_model(model, tmp_path / "in.npz", tmp_path / "out.npz", a_run_target())
    found = read_batches(tmp_path / "out.npz")
    assert count == len(found) == len(batches)
    weight = (np.random.default_rng(0).standard_normal((32, 8)) / np.sqrt(32)).astype(np.float32)
    for batch, out in zip(batches, found, strict=True):
        np.testing.assert_allclose(out["y"], np.maximum(batch["x"] @ weight, 0), atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "m.onnx", "out.npz"]


def test_a_batch_without_a_state_gets_the_output_of_the_batch_before(tmp_path):
    model = accumulator(tmp_path / "m.onnx")
    x, zeros = np.ones((3, 2), np.float32), np.zeros((1, 3, 2), np.float32)
    batches = [{"x": x, "s": zeros}, {"x": x}, {"x": 2 * x}, {"x": x, "s": zeros}, {"x": x}]
    target = replace(a_run_target(), states={"s": "next"})
    found = run_arrays(model, batches, target, "outputs")
    assert [float(outputs["y"][0, 0]) for outputs in found] == [1, 2, 4, 1, 2]


ANY_NAMES = ("serving/tokens:0", "0", "0/x", "1/0", "x", "X", "x.npy", "names.json", "file", "a name", "é/日本", "..")


def test_names_that_file_systems_and_zips_do_not_allow_are_kept(tmp_path):
    batches = [{name: np.full(2, index + 20 * batch) for index, name in enumerate(ANY_NAMES)} for batch in range(2)]
    write_batches(tmp_path / "x.npz", batches)
    write_records(tmp_path / "x.npz", tmp_path / "x.arrays")
    read_records(tmp_path / "x.arrays", tmp_path / "y.npz")
    for file in ("x.npz", "y.npz"):
        found = read_batches(tmp_path / file)
        assert [{name: array.tolist() for name, array in batch.items()} for batch in found] == [
            {name: array.tolist() for name, array in batch.items()} for batch in batches
        ]


def test_an_input_with_any_name_runs(tmp_path):
    nodes = [helper.make_node("Add", list(ANY_NAMES[:2]), ["s0"])]
    nodes += [helper.make_node("Add", [f"s{i}", name], [f"s{i + 1}"]) for i, name in enumerate(ANY_NAMES[2:])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in (*ANY_NAMES, "s10")]
    graph = helper.make_graph(nodes, "sum", ends[:-1], ends[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    batch = {name: np.full((1, 2), 2.0**index, np.float32) for index, name in enumerate(ANY_NAMES)}
    (found,) = run_arrays(tmp_path / "m.onnx", [batch], a_run_target(), "outputs")
    assert found["s10"].tolist() == [[4095.0, 4095.0]]


def test_batches_are_read_back_as_written(tmp_path):
    batches = [{"a": np.arange(3), "b/c": np.float16([[1.5]])}, {"a": np.zeros(0, bool)}]
    write_batches(tmp_path / "x.npz", batches)
    found = read_batches(tmp_path / "x.npz")
    assert [list(batch) for batch in found] == [["a", "b/c"], ["a"]]
    for batch, back in zip(batches, found, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(back[name], array, strict=True)


def test_an_input_of_the_wrong_shape_gives_an_error_and_leaves_no_outputs(tmp_path):
    model = a_network(tmp_path / "m.onnx")
    write_batches(tmp_path / "in.npz", [{"x": np.zeros((1, 31), np.float32)}])
    with pytest.raises(StepError, match=r"evaluate: .*invalid dimensions"):
        run_model(model, tmp_path / "in.npz", tmp_path / "out.npz", a_run_target(), stage="evaluate")
    assert not (tmp_path / "out.npz").exists()


def test_a_file_that_holds_no_batches_is_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=r"x\.npz"):
        read_batches(tmp_path / "x.npz")
    with pytest.raises(DataError, match=r"y\.npz"):
        read_batches(tmp_path / "y.npz")
