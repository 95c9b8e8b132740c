"""Execution providers that come as plug-ins of plain onnxruntime, as packages or as libraries."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tiny_models import a_convolution, a_network, a_quick_profile, a_run_target, write_quick_target

from edgeopt.bench import worker
from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.bench.providers import PROCESSOR
from edgeopt.bench.requests import run_request, runtime_request
from edgeopt.device.base import WorkerRequest
from edgeopt.device.local import LocalDevice
from edgeopt.errors import ProviderError

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


def test_a_plugin_that_cannot_be_loaded_is_refused(tmp_path):
    library = tmp_path / "plug-in.so"
    library.write_text("no library")
    with pytest.raises(ProviderError, match=f"the plug-in {BROKEN} can't be loaded.*Check its package"):
        time_on(BROKEN, a_network(tmp_path / "m.onnx"), provider_libraries={BROKEN: str(library)})


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
    a_convolution(tmp_path / "m.onnx")
    row = bench_rows(tmp_path, "openvino")[1]
    assert row["provider"] == OPENVINO
    assert sum(row["operators"].values()) == row["providers"].get(PROCESSOR, 0)


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
    assert worker.plugin_options("QNNExecutionProvider", libraries) == {"backend_path": str(tmp_path / "libQnnHtp.so")}
    assert worker.plugin_options(OPENVINO, libraries) == {}
