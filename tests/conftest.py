"""What every test shares: one torch thread, seeds, ONNX Runtime's telemetry off, and Ctrl-C as people have it."""

import os
import random
import signal
import sys

import numpy as np
import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, which every child would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def the_same_seeds_whatever_ran_before():
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
