import numpy as np
import pytest
from tiny_models import a_network, a_run_target

from edgeopt.bench.outputs import read_batches, run_model, write_batches
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
