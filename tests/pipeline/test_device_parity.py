import os
import subprocess
import sys

import numpy as np
import pytest
from spoilt_python import a_spoilt_python
from tiny_models import a_network, write_quick_target

from edgeopt.errors import ParityError
from edgeopt.pipeline.artifacts.device_parity import compare_outputs

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
