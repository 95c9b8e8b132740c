"""Helpers: run the Python sample of a bundle, or import it as an app would that took its code."""

import importlib.util
import subprocess
import sys
from pathlib import Path


def sample_of(bundle):
    return Path(bundle) / "samples" / "python" / "run.py"


def run_sample(bundle, *arguments):
    """Run the sample and return the finished process."""
    command = [sys.executable, sample_of(bundle), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def load_sample(bundle):
    """Return the sample as a module."""
    spec = importlib.util.spec_from_file_location("sample", sample_of(bundle))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same_mistakes(done, bundle):
    """Check that another language's sample, which has run, finds the Python sample's mistakes in the same words."""
    assert done.returncode == 1
    assert done.stdout.splitlines()
    assert sorted(done.stdout.splitlines()) == sorted(run_sample(bundle).stderr.splitlines())
