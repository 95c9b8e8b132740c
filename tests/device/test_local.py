import sys
import time
from pathlib import Path
from unittest.mock import PropertyMock

import numpy as np
import pytest
from tiny_models import a_network, a_run_target

from edgeopt.bench.outputs import run_arrays
from edgeopt.device.base import WorkerRefused, WorkerRequest
from edgeopt.device.local import _KEPT_WORKERS, LocalDevice
from edgeopt.device.process import WorkerProcess
from edgeopt.errors import DeviceError, StepError

DESCRIBE = WorkerRequest(mode="describe")


def a_program(folder: Path, text: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_this_machine_describes_itself_the_same_each_time():
    (first, environment), (second, _) = LocalDevice().describe(), LocalDevice().describe()
    assert first == second
    assert environment.processor
    assert environment.memory_bytes > 0
    assert environment.python == ".".join(map(str, sys.version_info[:3]))


def test_another_environments_python_is_used_and_named(tmp_path):
    program = a_program(tmp_path, f'touch "{tmp_path}/was-here"\nexec "{sys.executable}" "$@"')
    device = LocalDevice(program)
    assert device.uri == f"local:?python={program}"
    assert device.describe()[0] == LocalDevice().describe()[0]
    assert (tmp_path / "was-here").exists()


@pytest.mark.parametrize("name", ["SEGV", "KILL", "ABRT"])
def test_a_worker_that_a_signal_killed_is_an_error_that_names_the_signal(tmp_path, name):
    device = LocalDevice(a_program(tmp_path, f"read line\nkill -{name} $$"))
    with pytest.raises(DeviceError, match=f"killed by SIG{name}"):
        device.run(DESCRIBE, 60, {})


def test_a_worker_that_ends_without_an_answer_is_quoted(tmp_path):
    device = LocalDevice(a_program(tmp_path, "read line\necho noise\necho no onnxruntime here >&2\nexit 7"))
    with pytest.raises(DeviceError, match=r"exit code 7 and no answer\. Its last line on stderr: no onnxruntime here"):
        device.run(DESCRIBE, 60, {})


def test_a_worker_that_ended_before_it_was_asked_is_not_a_broken_pipe(tmp_path):
    with WorkerProcess([str(a_program(tmp_path, "exit 3"))], {}) as worker:
        time.sleep(0.3)
        with pytest.raises(DeviceError, match="exit code 3"):
            worker.ask(DESCRIBE, 60)


def test_a_worker_that_hangs_is_stopped_after_the_timeout(tmp_path):
    begin = time.monotonic()
    device = LocalDevice(a_program(tmp_path, "read line\nexec sleep 600"))
    with pytest.raises(DeviceError, match="did not answer within 0 s"):
        device.run(DESCRIBE, 0.3, {})
    assert time.monotonic() - begin < 30


def test_output_of_libraries_on_stdout_is_not_mistaken_for_an_answer(tmp_path):
    text = 'read line\necho noise\necho \'edgeopt-worker {"ok": true, "value": 1}\'\nread line'
    assert LocalDevice(a_program(tmp_path, text)).run(DESCRIBE, 60, {}) == {"value": 1}


def test_a_refusal_carries_its_kind_and_reason(tmp_path):
    text = 'read line\necho \'edgeopt-worker {"ok": false, "kind": "input", "reason": "why"}\''
    with pytest.raises(WorkerRefused, match="why") as caught:
        LocalDevice(a_program(tmp_path, text)).run(DESCRIBE, 60, {})
    assert caught.value.kind == "input"


def test_a_program_that_cannot_be_started_is_an_error(tmp_path):
    with pytest.raises(DeviceError, match="cannot start"):
        LocalDevice(tmp_path / "nowhere").run(DESCRIBE, 60, {})


def test_a_worker_that_computed_outputs_serves_the_next_ones(tmp_path):
    model, inputs = a_network(tmp_path / "m.onnx"), {"x": np.ones((2, 32), np.float32)}
    _KEPT_WORKERS.close()
    first, second = (run_arrays(model, [inputs], a_run_target(), "outputs")[0]["y"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert [kept.served for kept in _KEPT_WORKERS._idle] == [2]
    with pytest.raises(StepError, match="cannot run"):  # a refusal ends no worker
        run_arrays(model, [{"wrong": inputs["x"]}], a_run_target(), "outputs")
    assert [kept.served for kept in _KEPT_WORKERS._idle] == [3]


@pytest.mark.parametrize("is_noticed", [True, False])
def test_a_kept_worker_that_was_killed_is_replaced(tmp_path, monkeypatch, is_noticed):
    model, inputs = a_network(tmp_path / "m.onnx"), {"x": np.ones((2, 32), np.float32)}
    _KEPT_WORKERS.close()
    expected = run_arrays(model, [inputs], a_run_target(), "outputs")[0]["y"]
    (kept,) = _KEPT_WORKERS._idle
    kept.worker._process.kill()
    if not is_noticed:  # as if it ended between the look and the question
        monkeypatch.setattr(WorkerProcess, "is_running", PropertyMock(side_effect=[True, False]))
    else:
        kept.worker._process.wait()
    np.testing.assert_array_equal(run_arrays(model, [inputs], a_run_target(), "outputs")[0]["y"], expected)


def test_kept_workers_of_another_environment_are_not_used(tmp_path, monkeypatch):
    model, inputs = a_network(tmp_path / "m.onnx"), {"x": np.ones((2, 32), np.float32)}
    _KEPT_WORKERS.close()
    run_arrays(model, [inputs], a_run_target(), "outputs")
    for number in range(3):
        monkeypatch.setenv("SOME_SETTING", str(number))
        run_arrays(model, [inputs], a_run_target(), "outputs")
    monkeypatch.chdir(tmp_path)
    run_arrays(model, [inputs], a_run_target(), "outputs")
    assert [kept.served for kept in _KEPT_WORKERS._idle] == [1, 1]  # of the last two environments; no more are kept
    _KEPT_WORKERS.close()
    assert not _KEPT_WORKERS._idle
