import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builders import a_recipe
from extra_provider import SPOILING, a_python_with_another_provider
from spoilt_python import a_spoilt_python
from stub_builds import a_stub_build
from tiny_models import a_network, write_quick_target

from edgeopt.device.local import LocalDevice
from edgeopt.errors import ParityError
from edgeopt.pipeline.artifacts.device_parity import compare_outputs, device_parity
from edgeopt.store.ledger import Ledger
from edgeopt.store.workspace import Workspace

HERE = {"logits": np.array([[1.0, -4.0]], np.float32), "label": np.array([1])}


def there(**changes):
    return HERE | changes


def test_outputs_within_the_bundles_tolerance_agree_and_say_how_far_apart_they_are():
    found = compare_outputs(HERE, there(logits=np.array([[1.0, -4.002]], np.float32)), 1e-3)
    assert found.stage == "device"
    assert found.max_abs_error == pytest.approx(0.002, rel=1e-3)
    assert found.max_rel_error == pytest.approx(0.0005, rel=1e-3)
    assert found.tolerance == 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"logits": np.array([[1.0, -4.005]], np.float32)},
        {"logits": np.array([[1.0, np.nan]], np.float32)},
        {"logits": np.array([1.0, -4.0], np.float32)},
        {"label": np.array([0])},
    ],
)
def test_outputs_beyond_it_are_refused(wrong):
    with pytest.raises(ParityError, match="on the device against this machine"):
        compare_outputs(HERE, there(**wrong), 1e-3)


def test_a_missing_output_is_refused():
    with pytest.raises(ParityError, match="'label'"):
        compare_outputs(HERE, {"logits": HERE["logits"]}, 1e-3)


def test_a_build_on_a_device_that_computes_something_else_says_so(tmp_path):
    write_quick_target(tmp_path)
    a_network(tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", x=np.ones((16, 32), np.float32))
    command = ["build", "m.onnx", "--data", "in.npz", "--target", "./quick.toml"]
    command += ["--device", a_spoilt_python(tmp_path, 3.0)]
    done = subprocess.run(
        [sys.executable, "-m", "edgeopt", *command], cwd=tmp_path, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "output 'y' is off by" in done.stderr
    assert "on the device against this machine" in done.stderr


@pytest.mark.parametrize(("factor", "code"), [(1.01, 0), (1.1, 1)])
def test_another_provider_may_compute_in_half_precision_but_not_something_else(tmp_path, factor, code):
    """Files are compared with their networks on the processor, and outputs of a provider with the processor's."""
    device = a_python_with_another_provider(tmp_path, factor)
    write_quick_target(tmp_path, providers=f'["{SPOILING}", "CPUExecutionProvider"]')
    a_network(tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32))
    command = ["build", "m.onnx", "--data", "in.npz", "--target", "./quick.toml", "--device", device, "--no-train"]
    done = subprocess.run(
        [sys.executable, "-m", "edgeopt", *command, "--allow-fallback", "cpu"],
        cwd=tmp_path, env=os.environ, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert ("on the device against this machine; " in done.stderr) == bool(code)


class RecordingDevice(LocalDevice):
    """This machine under another name; writes down the models that run there."""

    uri = "ssh://elsewhere"

    def __init__(self):
        super().__init__()
        self.ran = []

    def run(self, request, timeout_seconds, variables):
        self.ran.append(Path(request.model).name)
        return super().run(request, timeout_seconds, variables)


@pytest.fixture
def check_on_device(tmp_path):
    """Return a function that checks one file on a device for a task, and what ran there."""
    model = tmp_path / "artifacts" / "m.onnx"
    for name in ("artifacts", "stages"):
        (tmp_path / name).mkdir()
    a_network(model)
    ledger, device = Ledger(tmp_path / "ledger.sqlite"), RecordingDevice()

    def check(task, golden, **facts):
        device.ran.clear()
        build = a_stub_build(
            device=device, ledger=ledger, workspace=Workspace(tmp_path),
            data=SimpleNamespace(task=None, golden_inputs=golden),
            facts={"task": task, **facts},
        )  # fmt: skip
        parity = device_parity(build, "m", a_recipe())
        assert parity.max_abs_error == 0.0
        return bool(device.ran)

    yield check
    ledger.close()


def test_a_file_is_compared_again_if_the_golden_inputs_or_the_runtime_here_are_others(check_on_device):
    """Tasks with other golden inputs can give the same file: an old comparison says nothing about them."""
    ones, zeros = ({"x": value(np.float32)} for value in (partial(np.ones, (8, 32)), partial(np.zeros, (8, 32))))
    assert check_on_device("task", ones)
    assert not check_on_device("task", ones)
    assert check_on_device("the same model with other data", zeros)
    assert check_on_device("task", ones, makers={"onnxruntime": "1.99"})
