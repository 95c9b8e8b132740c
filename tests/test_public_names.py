"""The names that a task file is written against: all of them exist, and none is loaded before it is used."""

import subprocess
import sys

import pytest

import edgeopt


@pytest.mark.parametrize("name", edgeopt.__all__)
def test_every_public_name_exists_and_is_listed(name):
    assert getattr(edgeopt, name) is not None
    assert name in dir(edgeopt)


@pytest.mark.parametrize("use", ["", "dir(edgeopt)", "edgeopt.Budget", "edgeopt.Importance", "edgeopt.TaskError"])
def test_importing_edgeopt_and_using_a_light_name_does_not_load_torch(use):
    heavy = {"torch", "numpy", "scipy", "onnx", "onnxruntime"}
    code = f"import sys, edgeopt; {use or 'pass'}; print(*{heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_a_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        _ = edgeopt.Trainer
