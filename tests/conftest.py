"""What every test shares: one torch thread, ONNX Runtime's telemetry off, and Ctrl-C as people have it."""

import os
import signal

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, which every child would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
