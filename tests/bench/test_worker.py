import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import a_network, a_quick_profile, a_run_target

from edgeopt.bench import worker
from edgeopt.bench.requests import run_request, runtime_request
from edgeopt.device.local import LocalDevice
from edgeopt.errors import ConfigError
from edgeopt.records.codec import to_json

WORKER = Path(worker.__file__)
GONE_SECONDS = 20.0  # a busy machine may take its time to end a process


def start_standalone(request: bytes) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(request + b"\n")
    process.stdin.flush()
    return process


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_it_runs_as_a_standalone_file_and_answers_in_one_line(tmp_path):
    model = a_network(tmp_path / "m.onnx")
    request = runtime_request("time", model, a_run_target())
    with start_standalone(to_json(request)) as process:
        line = process.stdout.readline().decode()
        process.stdin.close()
        assert process.wait(GONE_SECONDS) == 0
    assert line.startswith(worker.SENTINEL)
    answer = json.loads(line.removeprefix(worker.SENTINEL))
    assert answer["ok"]
    assert len(answer["wall_ns"]) == len(answer["cpu_ns"]) >= 20


def test_it_ends_when_stdin_ends_in_the_middle_of_a_run(tmp_path):
    model = a_network(tmp_path / "m.onnx")
    endless = runtime_request("time", model, a_run_target())
    fields = {**json.loads(to_json(endless)), "min_seconds": 600.0, "max_seconds": 600.0}
    with start_standalone(json.dumps(fields).encode()) as process:
        time.sleep(0.5)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(GONE_SECONDS) == 0


def test_it_does_not_outlive_a_parent_that_was_killed(tmp_path):
    model = a_network(tmp_path / "m.onnx")
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tiny_models import a_run_target
from edgeopt.bench.requests import runtime_request
from edgeopt.device.local import LocalDevice
with LocalDevice().start() as worker:
    worker.ask(runtime_request("serve", {str(model)!r}, a_run_target()), 60)
    print(worker._process.pid, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + GONE_SECONDS
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_io_binding_gives_the_same_outputs(tmp_path):
    model = a_network(tmp_path / "m.onnx")
    code = f"""
import sys
sys.path.insert(0, {str(WORKER.parent)!r})
import numpy, worker
ort = worker.import_onnxruntime()
session = ort.InferenceSession({str(model)!r}, providers=["CPUExecutionProvider"])
feed = worker.make_feed(session, {{"inputs": "", "batch_size": 2}})
bound = worker.make_bound_run(session, feed, "cpu")
for value in (1.0, 2.0):
    feed["x"][:] = value
    binding = bound()
    numpy.testing.assert_array_equal(binding.get_outputs()[0].numpy(), session.run(None, feed)[0])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_spinning_threads_are_quiet_before_the_answer(tmp_path):
    model = a_network(tmp_path / "m.onnx", width=512, layers=4, inputs=("N", 512))
    profile = a_quick_profile(threads=2, allow_spinning=True)
    with LocalDevice().start() as process:
        process.ask(runtime_request("serve", model, a_run_target(profile, batch_size=16)), 60)
        process.ask({"warmup_runs": 1, "min_runs": 10, "min_seconds": 0.0, "max_seconds": 5.0}, 60)
        used = []
        for _ in range(3):  # one window may be disturbed; spinning threads use three or more ticks of 10 ms in each
            before = read_cpu_ticks(process._process.pid)
            time.sleep(0.3)
            used.append(read_cpu_ticks(process._process.pid) - before)
        assert min(used) <= 1


def read_cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_without_the_nvidia_library_device_memory_is_unknown():
    assert worker.read_device_memory("libno-such-library.so.1") is None


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(("visible", "bytes_"), [("0", 1000), ("1,0", 1001), ("GPU-abc", 77)])
def test_device_memory_is_read_from_the_first_visible_device(tmp_path, monkeypatch, visible, bytes_):
    source, library = tmp_path / "nvml.c", tmp_path / "libnvml.so"
    source.write_text(
        "typedef unsigned long long u; typedef struct {u total, free, used;} M;\n"
        "int nvmlInit_v2(void) {return 0;} int nvmlShutdown(void) {return 0;}\n"
        "int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) {*h = (void *)(1000ul + i); return 0;}\n"
        "int nvmlDeviceGetHandleByUUID(const char *n, void **h) {*h = (void *)77ul; return n[0] != 'G';}\n"
        "int nvmlDeviceGetMemoryInfo(void *h, M *m) {m->total = 9; m->free = 8; m->used = (u)h; return 0;}\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert worker.read_device_memory(str(library)) == bytes_


@pytest.mark.parametrize(
    ("temperatures", "waits"),
    [
        ([None], 0),  # the system shows none
        ([45.0], 0),
        ([80.0, 70.0, 61.0, 59.0], 3),
        ([75.0, 71.0, 70.8], 2),  # it stops cooling
        ([90.0 - 0.6 * step for step in range(60)], 40),  # it takes too long
    ],
)
def test_the_worker_waits_while_a_hot_processor_cools(temperatures, waits):
    slept = []
    values = iter(temperatures)
    seconds = worker.cool_down(lambda: next(values), slept.append)
    assert len(slept) == waits
    assert seconds == sum(slept)


def test_each_timing_reports_its_temperature(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "read_temperature_c", lambda: 41.5)
    request = runtime_request("time", a_network(tmp_path / "m.onnx"), a_run_target())
    answer = worker.time_model(json.loads(to_json(request)))
    assert answer["temperatures_c"] == (41.5, 41.5)
    assert answer["cooled_seconds"] == 0


def test_the_worker_uses_the_profile_s_cores_and_graph_optimization_level(tmp_path):
    core = min(os.sched_getaffinity(0))
    profile = a_quick_profile(affinity=(core,), graph_level="disabled")
    request = runtime_request("serve", a_network(tmp_path / "m.onnx"), a_run_target(profile))
    with LocalDevice().start() as process:
        answer = process.ask(request, 60.0)
        assert os.sched_getaffinity(process._process.pid) == {core}
    assert answer["nodes"] == {"CPUExecutionProvider": 4}  # MatMul and Relu twice, as in the file


def test_a_core_that_does_not_exist_is_a_mistake_in_the_profile(tmp_path):
    missing = max(os.sched_getaffinity(0)) + 1000
    target = a_run_target(a_quick_profile(affinity=(missing,)))
    request = runtime_request("time", a_network(tmp_path / "m.onnx"), target)
    with pytest.raises(ConfigError, match=f"affinity names core {missing}; on this device a process may use only 0"):
        run_request(LocalDevice(), request, "time")
