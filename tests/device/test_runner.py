"""The native runner as a process on this machine, with the library of the installed onnxruntime."""

import time

import numpy as np
import pytest
from tiny_models import a_network, a_request, a_run_target

from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.device.arrays import read_records, write_records
from edgeopt.device.base import WorkerRefused, WorkerRequest
from edgeopt.device.local import LocalDevice
from edgeopt.device.process import WorkerProcess


@pytest.fixture
def start(native):
    """Return a function that starts a runner."""
    return lambda: WorkerProcess([str(native / "runner"), str(native / "libonnxruntime.so")], {})


def run_request(start, request: WorkerRequest) -> dict:
    with start() as runner:
        return runner.ask(request, 60)


def test_it_describes_the_machine_as_the_python_worker_does(start):
    there = run_request(start, WorkerRequest(mode="describe"))
    here = LocalDevice().run(WorkerRequest(mode="describe"), 60, {})
    same = ("family", "processor", "features", "cores", "memory_bytes", "onnxruntime", "governor", "temperature_c")
    assert {name: there[name] for name in same} == {name: here[name] for name in same}
    assert there.keys() == here.keys()


def test_it_times_until_both_minimums_are_met(start, tmp_path):
    model = a_network(tmp_path / "m.onnx")
    found = run_request(start, a_request("time", model, min_runs=300, min_seconds=0.0))
    assert len(found["wall_ns"]) == len(found["cpu_ns"]) == 300
    assert found["warmup_runs"] >= 5
    assert found.keys() == LocalDevice().run(a_request("time", model), 60, {}).keys()
    begin = time.monotonic()
    longer = run_request(start, a_request("time", model, min_runs=1, min_seconds=0.3))
    assert time.monotonic() - begin > 0.3
    assert len(longer["wall_ns"]) > 1
    shorter = run_request(start, a_request("time", model, min_runs=10**9, min_seconds=0.0, max_seconds=0.2))
    assert 1 < len(shorter["wall_ns"]) < 10**9
    assert sum(shorter["wall_ns"][:-1]) < 0.2e9


def test_memory_includes_the_weights_of_a_model(start, tmp_path):
    small = run_request(start, a_request("memory", a_network(tmp_path / "s.onnx", width=64)))
    large = run_request(start, a_request("memory", a_network(tmp_path / "l.onnx", width=2048)))  # 17 MB more weights
    assert small["supported"]
    assert 15e6 < large["run_peak_bytes"] - small["run_peak_bytes"] < 40e6


def test_outputs_equal_those_of_the_python_worker(start, tmp_path):
    model, inputs = a_network(tmp_path / "m.onnx"), tmp_path / "in.npz"
    rng = np.random.default_rng(0)
    write_batches(inputs, [{"x": rng.standard_normal((rows, 32)).astype(np.float32)} for rows in (3, 1, 2)] * 4)
    run_model(model, inputs, tmp_path / "here.npz", a_run_target())
    write_records(inputs, tmp_path / "in.arrays")
    files = {"inputs": str(tmp_path / "in.arrays"), "outputs": str(tmp_path / "out.arrays")}
    assert run_request(start, a_request("outputs", model, **files))["batches"] == 12
    read_records(tmp_path / "out.arrays", tmp_path / "there.npz")
    here, there = (read_batches(tmp_path / f"{name}.npz") for name in ("here", "there"))
    assert [batch["y"].shape for batch in there] == [(rows, 64) for rows in (3, 1, 2)] * 4
    assert all(np.array_equal(a["y"], b["y"]) for a, b in zip(here, there, strict=True))


def test_arrays_of_every_type_and_shape_survive_the_round_trip(tmp_path):
    arrays = {
        "a name with spaces": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 4), np.int8),
        "columns first": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        "flags": np.array([True, False]),
        "half": np.array([0.5], np.float16),
    }
    write_batches(tmp_path / "a.npz", [arrays, arrays])
    write_records(tmp_path / "a.npz", tmp_path / "a.arrays")
    read_records(tmp_path / "a.arrays", tmp_path / "b.npz")
    for batch in read_batches(tmp_path / "b.npz"):
        assert batch.keys() == arrays.keys()
        for name, array in arrays.items():
            assert batch[name].dtype == array.dtype
            assert np.array_equal(batch[name], array)
            assert batch[name].shape == array.shape


def test_it_serves_block_after_block(start, tmp_path):
    block = {"warmup_runs": 1, "min_runs": 7, "min_seconds": 0.0, "max_seconds": 5.0}
    with start() as runner:
        assert runner.ask(a_request("serve", a_network(tmp_path / "m.onnx")), 60)["precise_cpu_clock"]
        for _ in range(3):
            assert len(runner.ask(block, 60)["wall_ns"]) == 7


def test_the_given_inputs_are_timed(start, tmp_path):
    model = a_network(tmp_path / "m.onnx", inputs=("N", "T", 32))  # no random values, as T is dynamic
    with pytest.raises(WorkerRefused, match=r"has dynamic dimensions besides the batch: pass --inputs") as caught:
        run_request(start, a_request("time", model))
    assert caught.value.kind == "input"
    write_batches(tmp_path / "in.npz", [{"x": np.zeros((4, 2, 32), np.float32)}])
    write_records(tmp_path / "in.npz", tmp_path / "in.arrays")
    assert run_request(start, a_request("time", model, inputs=str(tmp_path / "in.arrays"), batch_size=4))["wall_ns"]


def test_it_refuses_impossible_requests_with_a_kind(start, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    refusals = (
        (a_request("time", tmp_path / "nowhere.onnx"), "model", "does not exist"),
        (a_request("time", tmp_path / "broken.onnx"), "model", "Protobuf parsing failed"),
        (
            a_request("time", tmp_path / "m.onnx", providers=("CUDAExecutionProvider",)),
            "provider",
            "only has CPUExecutionProvider, not",
        ),
    )
    a_network(tmp_path / "m.onnx")
    for request, kind, reason in refusals:
        with pytest.raises(WorkerRefused, match=reason) as caught:
            run_request(start, request)
        assert caught.value.kind == kind


def test_a_full_disk_is_an_error_of_the_device(start, tmp_path):
    write_batches(tmp_path / "in.npz", [{"x": np.zeros((4000, 32), np.float32)}])
    write_records(tmp_path / "in.npz", tmp_path / "in.arrays")
    files = {"inputs": str(tmp_path / "in.arrays"), "outputs": "/dev/full"}
    with pytest.raises(WorkerRefused, match="No space left on device") as caught:
        run_request(start, a_request("outputs", a_network(tmp_path / "m.onnx"), **files))
    assert caught.value.kind == "device"


def test_a_library_that_does_not_load_is_named(native, tmp_path):
    (tmp_path / "lib.so").write_bytes(b"no library")
    with pytest.raises(WorkerRefused, match="does not load") as caught:
        run_request(
            lambda: WorkerProcess([str(native / "runner"), str(tmp_path / "lib.so")], {}),
            WorkerRequest(mode="describe"),
        )
    assert caught.value.kind == "device"
