"""Execution providers that come as plug-ins of plain onnxruntime, as packages or as libraries."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from tiny_models import a_convolution, a_network, a_quick_profile, a_run_target, write_quick_target

from edgeopt.bench import worker
from edgeopt.bench.changes import match_nodes
from edgeopt.bench.nodes import ProfilingTurns, profile_nodes
from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.bench.providers import PROCESSOR
from edgeopt.bench.requests import run_request, runtime_request
from edgeopt.device.base import WorkerRequest
from edgeopt.device.local import LocalDevice
from edgeopt.errors import ConfigError, ProviderError
from edgeopt.records.codec import to_json

OPENVINO = "OpenVINOExecutionProvider"
BROKEN = "BrokenExecutionProvider"

PACKAGE = """
def get_ep_names():
    return ["BrokenExecutionProvider"]

def get_library_path():
    return __file__
"""


def time_on(provider, model, *, device=None, **changes):
    profile = a_quick_profile(providers=(provider, PROCESSOR), **changes)
    request = runtime_request("time", model, a_run_target(profile))
    return run_request(device or LocalDevice(), request, "measure", seconds=60)


def an_operator_that_openvino_lacks(path, before=("Relu",), after=("Relu",)):
    """Write a model with a Det, and others around it."""
    operators = (*before, "Det", *after)
    nodes = [helper.make_node(one, [f"v{index}"], [f"v{index + 1}"]) for index, one in enumerate(operators)]
    shapes = (("v0", ["N", 4, 4]), (f"v{len(operators)}", ["N"]))
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes]
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=opsets, ir_version=8), path
    )
    return path


@pytest.fixture(scope="module")
def openvino_library():
    """The library of an installed plug-in that finds hardware here."""
    library = worker.find_plugins().get(OPENVINO)
    if library is None:
        pytest.skip("onnxruntime-ep-openvino is not installed (there is none for this system)")
    try:
        run_request(LocalDevice(), WorkerRequest(mode="describe", providers=(OPENVINO,)), "bench")
    except ProviderError as error:
        pytest.skip(f"OpenVINO runs on Intel's hardware: {error}")
    return library


@pytest.fixture
def with_a_broken_package(tmp_path):
    """A Python with a plug-in package whose library is none."""
    package = tmp_path / "site" / "onnxruntime_ep_broken"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{package.parent}" exec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    return program


def test_the_plugin_of_an_installed_package_runs_nodes(openvino_library, tmp_path):
    nodes = time_on(OPENVINO, a_convolution(tmp_path / "m.onnx"))["nodes"]
    assert nodes[OPENVINO] >= 3
    assert OPENVINO in LocalDevice().describe()[1].providers


def test_a_plugin_computes_what_the_processor_does(openvino_library, tmp_path):
    model, inputs = a_network(tmp_path / "m.onnx"), tmp_path / "in.npz"
    write_batches(inputs, [{"x": np.random.default_rng(0).standard_normal((4, 32)).astype("float32")}])
    found = {}
    for provider in (OPENVINO, PROCESSOR):
        target = a_run_target(a_quick_profile(providers=tuple(dict.fromkeys((provider, PROCESSOR)))))
        run_model(model, inputs, tmp_path / "out.npz", target)
        found[provider] = next(iter(read_batches(tmp_path / "out.npz")))
    for name, expected in found[PROCESSOR].items():
        np.testing.assert_allclose(found[OPENVINO][name], expected, rtol=0.02, atol=0.02)


def test_a_target_may_name_a_plugins_library(openvino_library, tmp_path, monkeypatch):
    copied = {OPENVINO: openvino_library}
    (tmp_path / "sitecustomize.py").write_text(
        "import pkgutil\nfound = pkgutil.iter_modules\n"
        "pkgutil.iter_modules = lambda *a: [m for m in found(*a) if not m.name.startswith('onnxruntime_ep_')]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    model = a_convolution(tmp_path / "m.onnx")
    with pytest.raises(ProviderError, match="OpenVINOExecutionProvider is not in the device's onnxruntime"):
        time_on(OPENVINO, model)
    assert time_on(OPENVINO, model, provider_libraries=copied)["nodes"][OPENVINO] >= 3


def test_a_library_is_not_loaded_in_place_of_a_provider_that_is_there(tmp_path):
    with pytest.raises(ConfigError, match=f"has {PROCESSOR} already, so it can't load .*leave it out"):
        time_on(PROCESSOR, a_network(tmp_path / "m.onnx"), provider_libraries={PROCESSOR: "/opt/lib.so"})


def test_a_plugin_may_be_a_fallback(openvino_library, tmp_path):
    target = a_run_target(a_quick_profile(providers=("CUDAExecutionProvider",)), allow_fallback=(OPENVINO, "cpu"))
    request = runtime_request("time", a_convolution(tmp_path / "m.onnx"), target)
    assert run_request(LocalDevice(), request, "measure", seconds=60)["nodes"][OPENVINO] >= 3


COUNT_THREADS = """
import json, os, sys
from edgeopt.bench import worker
request, cores = json.loads(sys.argv[1]), json.loads(sys.argv[2])
worker.bind_to_cores(cores)
session, _ = worker.load_session(request)
run = worker.make_run(session, worker.make_feed(session, request))
for _ in range(50):
    run()
print(len(os.listdir("/proc/self/task")))
"""


def test_openvino_starts_no_more_threads_than_the_target_has(openvino_library, tmp_path):
    """It would start one for each core; bound to a single core it starts none besides."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("there is only one core")
    profile = a_quick_profile(providers=(OPENVINO, PROCESSOR), threads=1)
    request = to_json(runtime_request("time", a_convolution(tmp_path / "m.onnx", size=32), a_run_target(profile)))
    counts = []
    for bound in ([], cores[:1]):
        command = [sys.executable, "-c", COUNT_THREADS, request.decode(), json.dumps(bound)]
        counts.append(int(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout))
    assert counts[0] == counts[1]


def test_two_files_share_a_row_for_what_a_plugin_runs_of_them(openvino_library, tmp_path):
    files = [a_convolution(tmp_path / f"{layers}.onnx", layers=layers) for layers in (2, 3)]
    target = a_run_target(a_quick_profile(providers=(OPENVINO, PROCESSOR)))
    before, after = profile_nodes(files, target, ProfilingTurns(rounds=1))
    rows = [(row.operator, row.nodes) for row in match_nodes(before.nodes, after.nodes)]
    assert rows == [("OpenVINO subgraph", (1, 1))]


def test_nodes_that_a_plugin_cannot_run_are_refused_without_the_processor(openvino_library, tmp_path):
    model = an_operator_that_openvino_lacks(tmp_path / "m.onnx")
    target = a_run_target(a_quick_profile(providers=(OPENVINO,)))
    reason = (
        f"{OPENVINO} can't run all nodes, and the target names no {PROCESSOR} for the others. "
        f"Let the processor run them with `--allow-fallback {PROCESSOR}`."
    )
    with pytest.raises(ProviderError, match=f"^{re.escape(reason)}$"):
        run_request(LocalDevice(), runtime_request("time", model, target), "measure", seconds=60)


def test_a_plugin_that_runs_no_nodes_is_refused(openvino_library, tmp_path):
    model = an_operator_that_openvino_lacks(tmp_path / "m.onnx", before=(), after=())
    with pytest.raises(ProviderError, match=f"{OPENVINO} started but runs no nodes: {PROCESSOR} 1. Let the processor"):
        time_on(OPENVINO, model)


def test_the_hint_is_for_the_provider_that_is_missing(openvino_library, tmp_path):
    profile = a_quick_profile(providers=(OPENVINO, "CUDAExecutionProvider", PROCESSOR))
    request = runtime_request("time", a_network(tmp_path / "m.onnx"), a_run_target(profile))
    with pytest.raises(ProviderError, match=r"CUDAExecutionProvider is not in .*\. Install onnxruntime-gpu"):
        run_request(LocalDevice(), request, "measure", seconds=60)


def test_a_plugin_that_cannot_be_loaded_is_refused(tmp_path):
    library = tmp_path / "plug-in.so"
    library.write_text("no library")
    with pytest.raises(ProviderError, match=f"the plug-in {BROKEN} can't be loaded: Failed .*Check the library"):
        time_on(BROKEN, a_network(tmp_path / "m.onnx"), provider_libraries={BROKEN: str(library)})


@pytest.mark.parametrize("error", ["RuntimeError", "FileNotFoundError", "AttributeError"])
def test_a_package_that_cannot_find_its_library_does_no_harm(with_a_broken_package, tmp_path, error):
    package = tmp_path / "site" / "onnxruntime_ep_broken" / "__init__.py"
    package.write_text(PACKAGE.replace("return __file__", f"raise {error}('found 0')"))
    assert BROKEN not in LocalDevice(with_a_broken_package).describe()[1].providers


def test_a_broken_package_is_named_and_does_no_harm(with_a_broken_package, tmp_path):
    device = LocalDevice(with_a_broken_package)
    assert BROKEN in device.describe()[1].providers
    assert time_on(PROCESSOR, a_network(tmp_path / "m.onnx"), device=device)["nodes"][PROCESSOR] > 0


def bench_rows(folder, providers, *arguments):
    """Return the rows of ``edgeopt bench`` on the ``m.onnx`` of a folder."""
    target = write_quick_target(folder)
    command = [sys.executable, "-m", "edgeopt", "bench", "m.onnx", "--target", target, "--providers", providers]
    done = subprocess.run([*command, *arguments, "--json"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["rows"]


def test_a_plugin_that_does_not_start_has_a_row_with_the_reason(with_a_broken_package, tmp_path):
    a_network(tmp_path / "m.onnx")
    rows = bench_rows(tmp_path, "broken,cpu", "--device", f"local:?python={with_a_broken_package}")
    assert [row["provider"] for row in rows] == [PROCESSOR, BROKEN]
    assert rows[0]["error"] is None
    assert f"the plug-in {BROKEN} can't be loaded" in rows[1]["error"]


def test_every_node_that_a_plugin_leaves_is_counted(openvino_library, tmp_path):
    an_operator_that_openvino_lacks(tmp_path / "m.onnx")
    row = bench_rows(tmp_path, "openvino")[1]
    assert (row["provider"], row["operators"]) == (OPENVINO, {"Det": 1})
    assert row["providers"] == {OPENVINO: 2, PROCESSOR: 1}


@pytest.mark.parametrize("kinds", [("CPU", "NPU", "GPU"), ("GPU", "CPU", "NPU")])
def test_of_several_kinds_of_hardware_the_most_special_one_is_taken(kinds):
    class Ort:
        @staticmethod
        def get_ep_devices():
            return [a_device("OpenVINOExecutionProvider", kind) for kind in kinds] + [a_device("Other", "NPU")]

    found = worker.plugin_devices(Ort, OPENVINO)
    assert [one.device.type.name for one in found] == ["NPU", "GPU", "CPU"]


class FreeDimensions:
    """Session options that keep which open dimensions get which sizes."""

    def __init__(self):
        self.sizes = {}

    def add_free_dimension_override_by_name(self, name, size):
        self.sizes[name] = size


def test_open_dimensions_get_the_sizes_of_the_batch_that_is_timed_or_scored(tmp_path):
    model = a_network(tmp_path / "m.onnx")
    request = {"model": str(model), "inputs": "", "batch_size": 3}
    timed, scored = FreeDimensions(), FreeDimensions()
    worker.fix_dimensions(onnxruntime, timed, request, None)
    worker.fix_dimensions(onnxruntime, scored, request, {"x": np.zeros((5, 32), "float32")})
    assert (timed.sizes, scored.sizes) == ({"N": 3}, {"N": 5})


def test_an_open_dimension_without_a_name_is_refused_where_shapes_are_fixed(tmp_path):
    request = {"model": str(a_network(tmp_path / "m.onnx", inputs=(None, 32))), "inputs": "", "batch_size": 3}
    with pytest.raises(worker.WorkerError, match="dimension 0 of input 'x' has neither a size nor a name") as caught:
        worker.fix_dimensions(onnxruntime, FreeDimensions(), request, None)
    assert caught.value.kind == "model"


def test_a_file_that_the_processor_cannot_run_has_fixed_shapes(tmp_path):
    """As one that was compiled for QNN: an EPContext node."""
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="", main_context=1)
    ends = [helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=opsets, ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    options, request = FreeDimensions(), {"model": str(tmp_path / "m.onnx"), "inputs": "", "batch_size": 1}
    worker.fix_dimensions(onnxruntime, options, request, None)
    assert not options.sizes


def test_each_shape_of_a_batch_gets_a_session_of_its_own_where_shapes_are_fixed(tmp_path, monkeypatch):
    batches = [{"x": np.ones((rows, 32), "float32")} for rows in (4, 4, 2)]
    write_batches(tmp_path / "in.npz", batches)
    loaded = []

    def load(request, batch):
        loaded.append(batch["x"].shape)
        return onnxruntime.InferenceSession(request["model"]), 0

    monkeypatch.setattr(worker, "load_session", load)
    request = {"inputs": str(tmp_path / "in.npz"), "outputs": str(tmp_path / "out.npz"), "states": {}}
    request |= {"model": str(a_network(tmp_path / "m.onnx")), "providers": ["QNNExecutionProvider", PROCESSOR]}
    assert worker.run_batches(request) == {"batches": 3}
    assert loaded == [(4, 32), (2, 32)]
    assert [len(next(iter(one.values()))) for one in read_batches(tmp_path / "out.npz")] == [4, 4, 2]
    loaded.clear()
    worker.run_batches({**request, "providers": [PROCESSOR]})
    assert loaded == [(4, 32)]


def a_device(provider, kind):
    hardware = type("Hardware", (), {"type": type("Kind", (), {"name": kind})})
    return type("Device", (), {"ep_name": provider, "device": hardware})


def test_qnn_is_told_where_its_back_end_is(tmp_path: Path):
    (tmp_path / "libQnnHtp.so").write_text("")
    libraries = {"QNNExecutionProvider": str(tmp_path / "libonnxruntime_providers_qnn.so")}
    request, device = {"provider_libraries": libraries, "threads": 2}, a_device("QNNExecutionProvider", "CPU")
    options = worker.plugin_options("QNNExecutionProvider", device, request)
    assert options == {"backend_path": str(tmp_path / "libQnnHtp.so")}


def test_only_on_a_processor_openvino_is_told_the_number_of_threads():
    on_processor, on_gpu = (
        worker.plugin_options(OPENVINO, a_device(OPENVINO, kind), {"threads": 3}) for kind in ("CPU", "GPU")
    )
    assert json.loads(on_processor["load_config"]) == {"CPU": {"INFERENCE_NUM_THREADS": "3"}}
    assert on_gpu == {}


def test_an_nvidia_plugin_runs_without_buffers_on_the_device_which_plain_onnxruntime_lacks(tmp_path, monkeypatch):
    session = onnxruntime.InferenceSession(a_network(tmp_path / "m.onnx"), providers=[PROCESSOR])
    feed, name = {"x": np.zeros((1, 32), "float32")}, "NvTensorRTRTXExecutionProvider"
    monkeypatch.setattr(session, "get_providers", lambda: [name, PROCESSOR])
    with pytest.raises(RuntimeError, match="device"):
        worker.make_run(session, feed)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [a_device(name, "GPU")])
    assert worker.make_run(session, feed)()[0].shape == (1, 64)
