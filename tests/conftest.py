"""What every test shares: one torch thread, and ONNX Runtime's telemetry off."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
