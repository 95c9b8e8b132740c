"""A plain timing loop over an ONNX Runtime session, as anybody would write it, with the messages of edgeopt's worker.

In: a line of JSON with ``model`` and ``warmup_seconds``, then one for each turn with ``warmup_runs``, ``min_runs`` and
``min_seconds``. Out: a line for each, with the CPU time of every run. ``benchmarks/verdicts.py`` lets this loop and
edgeopt's worker take turns on the same model.
"""

import json
import os
import sys
import time

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime

request = json.loads(sys.stdin.readline())
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
entry = session.get_inputs()[0]
feed = {entry.name: np.random.default_rng(0).standard_normal((1, *entry.shape[1:])).astype(np.float32)}
begin = time.monotonic()
while time.monotonic() < begin + request["warmup_seconds"]:
    session.run(None, feed)
answer: dict[str, object] = {"ok": True}
while True:
    print("edgeopt-worker " + json.dumps(answer), flush=True)
    line = sys.stdin.readline()
    if not line:
        break
    turn = json.loads(line)
    for _ in range(turn["warmup_runs"]):
        session.run(None, feed)
    times: list[int] = []
    begin = time.monotonic()
    while len(times) < turn["min_runs"] or time.monotonic() < begin + turn["min_seconds"]:
        start = time.process_time_ns()
        session.run(None, feed)
        times.append(time.process_time_ns() - start)
    answer = {"ok": True, "cpu_ns": times}
