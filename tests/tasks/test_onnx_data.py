"""The user's arrays for a given model: taken or refused with the file, the array, both types or shapes, and advice."""

import zipfile

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeopt.errors import DataError
from edgeopt.tasks.onnx_data.arrays import load_arrays
from edgeopt.tasks.onnx_data.specs import describe_inputs, open_dimensions, with_own_names

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def loaded(path, *values, **options):
    return load_arrays(path, describe_inputs(values or (X,)), **options)


def written(folder, **arrays):
    np.savez(folder / "in.npz", **arrays)
    return folder / "in.npz"


def an_input(name, *shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, list(shape))


KINDS = {np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name: kind for kind in (1, 2, 3, 6, 7, 9, 10, 11)}


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("float64", "float32"), ("float32", "float16"), ("float16", "float32"), ("float32", "float64"),
        ("int32", "int64"), ("int64", "int32"), ("int64", "uint8"), ("int64", "float32"), ("float32", "int64"),
        ("bool", "float32"), ("bool", "int64"), ("int64", "bool"), (">f4", "float32"),
    ],
)  # fmt: skip
def test_values_that_stay_what_they_are_are_cast_with_a_note(tmp_path, found, wanted):
    values = np.array([[0, 1, 1], [1, 1, 0]]).astype(found)
    arrays = loaded(written(tmp_path, x=values), an_input("x", "n", 3, kind=KINDS[wanted]))
    assert (arrays.groups[0].inputs["x"].dtype, arrays.groups[0].inputs["x"].tolist()) == (
        np.dtype(wanted),
        values.tolist(),
    )
    assert arrays.notes == (() if found == ">f4" else (f"'x' cast from {found} to {wanted}",))


@pytest.mark.parametrize(
    ("values", "wanted", "reason"),
    [
        (np.array([1e300]), "float32", "is float64, but the model takes float32, and 1 values are outside its range"),
        (np.array([1e5], np.float32), "float16", "outside its range"),
        (np.array([2**40]), "int32", "not whole numbers in its range, such as 1099511627776"),
        (np.array([-1]), "uint8", "not whole numbers in its range"),
        (np.array([0.5]), "int64", "not whole numbers in its range, such as 0.5"),
        (np.array([2**53 + 1]), "float32", "rounded by it"),
        (np.array([2]), "bool", "rounded by it"),
        (np.array([1], np.uint8), "float32", r"is uint8, but the model takes float32. Scale the values as in training"),
        (np.array([1j]), "float32", "is complex128, but the model takes float32"),
        (np.array(["a"]), "float32", "is <U1, but the model takes float32"),
    ],
)
def test_values_that_would_change_are_refused(tmp_path, values, wanted, reason):
    with pytest.raises(DataError, match=rf"in\.npz: 'x' .*{reason}"):
        loaded(written(tmp_path, x=values), an_input("x", "n", kind=KINDS[wanted]))


def test_values_that_are_not_finite_are_counted(tmp_path):
    values = ROWS.copy()
    values[1, 0], values[2, 1], values[3, 2] = np.nan, np.nan, -np.inf
    with pytest.raises(DataError, match=r"in\.npz: 'x' has 2 NaN and 1 infinite values, the first in row 1"):
        loaded(written(tmp_path, x=values.astype(np.float64)))


def test_objects_are_refused_by_name_and_do_not_matter_if_unused(tmp_path):
    ragged = np.array([[1, 2], [1]], dtype=object)
    with pytest.raises(DataError, match=r"in\.npz: array 'x' cannot be read: it holds Python objects"):
        loaded(written(tmp_path, x=ragged))
    assert loaded(written(tmp_path, x=ROWS, names=ragged)).notes == ("not used of in.npz: names",)


def test_a_single_input_may_be_an_npy_or_an_array_without_a_name(tmp_path):
    np.save(tmp_path / "in.npy", ROWS)
    assert loaded(tmp_path / "in.npy").groups[0].inputs["x"].tolist() == ROWS.tolist()
    np.savez(tmp_path / "in.npz", ROWS)
    assert loaded(tmp_path / "in.npz").groups[0].inputs["x"].tolist() == ROWS.tolist()
    with pytest.raises(DataError, match="holds one array, but the model has the inputs x, z"):
        loaded(tmp_path / "in.npy", X, an_input("z", "n"))


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"PK\x03\x04 and then nothing", b"\x93NUMPY\x01\x00"])
def test_a_file_that_holds_no_arrays_is_named(tmp_path, content):
    (tmp_path / "in.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"in\.npz cannot be read as an \.npz file of arrays"):
        loaded(tmp_path / "in.npz")


def test_a_damaged_array_is_named(tmp_path):
    path = written(tmp_path, x=np.zeros((400, 3), np.float32))
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"in\.npz: array 'x' cannot be read"):
        loaded(path)


@pytest.mark.parametrize("name", ["serving/tokens:0", "0", "0/x", "labels", "x.npy", "a name", "é"])
def test_an_input_may_have_any_name(tmp_path, name):
    arrays = loaded(written(tmp_path, **{name: ROWS, "other": ROWS[:2] + 1}), an_input(name, "n", 3))
    assert arrays.groups[0].inputs[name].tolist() == ROWS.tolist()


def test_names_that_differ_by_an_ending_are_told_apart(tmp_path):
    path = tmp_path / "in.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in (("x.npy.npy", ROWS), ("x.npy", ROWS + 1)):
            with archive.open(name, "w") as stream:
                np.lib.format.write_array(stream, values)
    found = loaded(path, X, an_input("x.npy", "n", 3)).groups[0].inputs
    assert (found["x"][0, 0], found["x.npy"][0, 0]) == (1, 0)


def test_labels_have_another_key_if_an_input_is_called_labels(tmp_path):
    path = written(tmp_path, labels=ROWS, targets=np.arange(4))
    arrays = loaded(path, an_input("labels", "n", 3))
    assert (arrays.groups[0].inputs["labels"].shape, arrays.groups[0].labels.tolist()) == ((4, 3), [0, 1, 2, 3])


@pytest.mark.parametrize("key", ["label", "Labels", "y", "targets", "y_true"])
def test_an_array_that_is_probably_meant_as_labels_is_refused(tmp_path, key):
    path = written(tmp_path, **{"x": ROWS, key: np.arange(4)})
    with pytest.raises(DataError, match=rf"in\.npz has an array '{key}', .* If it holds the labels, name it 'labels'"):
        loaded(path)
    assert loaded(path, judged=False).groups[0].labels is None


def test_the_shape_is_named_with_advice(tmp_path):
    image = an_input("x", "n", 3, 8, 9)
    for values, advice in (
        (np.zeros((4, 8, 9, 3), np.float32), r"shape \(4, 8, 9, 3\), but the model takes \[n, 3, 8, 9\]: its channels"),
        (np.zeros((3, 8, 9), np.float32), "add a first dimension"),
        (np.zeros((4, 3, 8, 8), np.float32), r"takes \[n, 3, 8, 9\]\."),
    ):
        with pytest.raises(DataError, match=advice):
            loaded(written(tmp_path, x=values), image)


def test_rows_have_to_agree(tmp_path):
    with pytest.raises(DataError, match=r"same number of rows, at least one; found \{'x': 4, 'labels': 3\}"):
        loaded(written(tmp_path, x=ROWS, labels=np.arange(3)))
    with pytest.raises(DataError, match="at least one"):
        loaded(written(tmp_path, x=ROWS[:0]))
    with pytest.raises(DataError, match="'labels' is a single number, but there are 4 samples"):
        loaded(written(tmp_path, x=ROWS, labels=np.int64(1)))
    with pytest.raises(DataError, match="'labels' is <U3; labels are numbers"):
        loaded(written(tmp_path, x=ROWS, labels=np.array(["cat", "dog", "cat", "dog"])))


def test_single_numbers_and_inputs_of_fixed_size_beside_dynamic_ones_are_shared(tmp_path):
    values = (an_input("s"), X, an_input("adjacency", 5, 5))
    path = written(tmp_path, x=ROWS, s=np.float32(2), adjacency=np.eye(5, dtype=np.float32))
    assert loaded(path, *values).axes == {"s": None, "x": 0, "adjacency": None}
    with pytest.raises(DataError, match=r"'s' has shape \(4,\), but the model takes \[\], one number that all samples"):
        loaded(written(tmp_path, x=ROWS, s=np.ones(4, np.float32), adjacency=np.eye(5, dtype=np.float32)), *values)


def test_inputs_that_are_all_fixed_at_one_are_batches(tmp_path):
    values = (an_input("x", 1, 3), an_input("z", 1, 2))
    for count in (1, 4):
        assert loaded(written(tmp_path, x=ROWS[:count], z=ROWS[:count, :2]), *values).axes == {"x": 0, "z": 0}


def test_a_state_has_its_batch_where_the_graph_or_the_key_says(tmp_path):
    state = np.ones((2, 4, 5), np.float32)
    for shape in ((2, "n", 5), (2, "other", 5), (2, "", 5)):
        found = loaded(written(tmp_path, x=ROWS, h=state), X, an_input("h", *shape))
        assert (found.axes, found.samples) == ({"x": 0, "h": 1}, 4)
    key = {"x": ROWS, "h:1": np.ones((4, 4, 5), np.float32)}
    assert loaded(written(tmp_path, **key), X, an_input("h", "a", "b", 5)).axes["h"] == 1
    fixed = (an_input("x", 1, 3), an_input("h", 2, 1, 5))
    assert loaded(written(tmp_path, x=ROWS, h=state), *fixed).axes["h"] == 1
    with pytest.raises(DataError, match=r"found \{'x': 4, 'h': 3\} \('h' in dimension 1\).* as in 'state:1'"):
        loaded(written(tmp_path, x=ROWS, h=state[:, :3]), X, an_input("h", 2, "n", 5))


@pytest.mark.parametrize("key", ["y_test", "ground_truth", "arr_1"])
def test_an_array_with_a_row_for_each_sample_may_be_the_labels_and_is_refused_without_labels(tmp_path, key):
    with pytest.raises(DataError, match=f"has an array '{key}' with a row for each of the 4 samples"):
        loaded(written(tmp_path, x=ROWS, **{key: np.arange(4)}))
    assert loaded(written(tmp_path, x=ROWS, labels=np.arange(4), **{key: np.arange(4)})).groups[0].labels is not None


def test_dimensions_of_one_name_keep_it_only_if_the_data_have_one_size_there():
    (image, ids) = describe_inputs(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 3, "s", "s"]), ("ids", ["n", "t"]))
    )
    apart = with_own_names((image, ids), [{"x": (8, 3, 12, 12), "ids": (8, 5)}, {"x": (1, 3, 12, 16), "ids": (1, 5)}])
    assert [spec.names for spec in apart] == [("n", "", "s", ""), ("n", "t")]
    assert [one.name for one in open_dimensions(apart[0], 0)] == ["s", "x[3]"]
    assert with_own_names((image,), [{"x": (8, 3, 12, 12)}]) == (image,)
