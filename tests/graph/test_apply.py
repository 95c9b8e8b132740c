import logging
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest
from onnx_running import a_network, write

from edgeopt.errors import StepError, StoppedError
from edgeopt.graph import apply
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.compatibility import check_compatibility
from edgeopt.graph.subprocess_worker import GraphAnswer
from edgeopt.records.codec import from_json
from edgeopt.records.recipe import Compact, FlushDenormals, Simplify

LIMITS = {"calibration": None, "max_opset": 20, "max_ir": 9}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(a_network(), tmp_path_factory.mktemp("apply") / "source.onnx")


def test_every_stage_keeps_its_file_and_the_last_is_the_target(tmp_path, source):
    results = apply_steps((FlushDenormals(), Compact()), source, tmp_path / "out.onnx", **LIMITS)
    assert [result.path.name for result in results] == ["out.0-flush-denormals.onnx", "out.onnx"]
    assert all(result.path.is_file() for result in results)


def test_without_steps_the_file_is_copied(tmp_path, source):
    assert apply_steps((), source, tmp_path / "out.onnx", **LIMITS) == []
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


def test_a_file_that_is_too_new_for_the_target_is_refused(tmp_path, source):
    with pytest.raises(StepError, match=r"compact: out\.onnx has operator set 18 and IR 8; the target loads at most"):
        apply_steps((Compact(),), source, tmp_path / "out.onnx", **{**LIMITS, "max_opset": 17})


def test_a_missing_file_is_named_in_the_error(tmp_path):
    with pytest.raises(StepError, match=r"absent\.onnx cannot be read"):
        apply_steps((Compact(),), tmp_path / "absent.onnx", tmp_path / "out.onnx", **LIMITS)


def test_a_broken_file_gives_the_same_error_from_a_subprocess(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(StepError, match=r"simplify: .*broken\.onnx cannot be read as an ONNX model"):
        apply_steps((Simplify(),), tmp_path / "broken.onnx", tmp_path / "out.onnx", **LIMITS)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "its process was ended by SIGSEGV. The build continues without it",
        ),
        ("raise RuntimeError('no such pass')", "its process failed: RuntimeError: no such pass"),
        ("print('hello')", "its process gave no answer"),
    ],
)
def test_a_subprocess_that_dies_is_an_error_of_its_step(tmp_path, source, monkeypatch, program, reason):
    def run_another_program(command, **options):
        return real_run([sys.executable, "-c", program], **options)

    real_run = subprocess.Popen
    monkeypatch.setattr(apply.subprocess, "Popen", run_another_program)
    with pytest.raises(StepError, match=f"simplify: {reason}"):
        apply_steps((Simplify(),), source, tmp_path / "out.onnx", **LIMITS)


def test_a_subprocess_ends_with_the_process_that_waits_for_it(tmp_path):
    """The job never comes, so nothing but the end of the parent ends the subprocess."""
    program = (
        "import os, subprocess, sys, time\n"
        "watched, kept_open = os.pipe()\n"
        "command = [sys.executable, '-m', 'edgeopt.graph.subprocess_worker', str(watched)]\n"
        "child = subprocess.Popen(command, stdin=0, pass_fds=(watched,), start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = Path(f"/proc/{int(parent.stdout.readline())}")
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while child.exists() and (child / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the subprocess outlived its parent"
        time.sleep(0.05)
    parent.stdin.close()
    parent.stdout.close()


def test_a_subprocess_that_hangs_is_stopped(tmp_path, source, monkeypatch):
    monkeypatch.setattr(apply, "_MAX_SECONDS", 0.05)
    with pytest.raises(StepError, match="simplify: did not end within"):
        apply_steps((Simplify(),), source, tmp_path / "out.onnx", **LIMITS)


def test_a_step_that_is_stopped_is_no_failure_of_the_step(tmp_path, source, monkeypatch):
    popen = subprocess.Popen

    def sleep(command, **options):
        return popen([sys.executable, "-c", "import time; time.sleep(60)"], **options)

    monkeypatch.setattr(apply.subprocess, "Popen", sleep)
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(apply_steps, (Simplify(),), source, tmp_path / "out.onnx", **LIMITS)
        while not apply._running:
            time.sleep(0.01)
        apply.kill_graph_processes()
        with pytest.raises(StoppedError):
            step.result(timeout=30)


def test_the_debug_log_holds_the_job_its_duration_its_exit_code_and_its_stderr(tmp_path, source, monkeypatch, caplog):
    def run_another_program(command, **options):
        return real_run([sys.executable, "-c", "import sys; sys.exit('first line\\nsecond line')"], **options)

    real_run = subprocess.Popen
    monkeypatch.setattr(apply.subprocess, "Popen", run_another_program)
    caplog.set_level(logging.DEBUG, "edgeopt.graph.apply")
    with pytest.raises(StepError, match="simplify: its process failed: second line"):
        apply_steps((Simplify(),), source, tmp_path / "out.onnx", **LIMITS)
    sent, ended, *printed = caplog.messages
    assert sent == f"simplify: sending StepJob for {source}"
    assert re.fullmatch(r"simplify: exit code 1 after \d+\.\d\d s", ended)
    assert printed == ["simplify: stderr: first line", "simplify: stderr: second line"]


def test_the_subprocess_prints_only_its_answer_on_stdout_and_never_imports_torch(tmp_path, source):
    job = b'{"job":"step","step":{"step":"simplify"},"calibration":null,"source":"%s","target":"%s"}' % (
        str(source).encode(),
        str(tmp_path / "out.onnx").encode(),
    )
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "edgeopt.graph.subprocess_worker"],
        input=job,
        capture_output=True,
        check=True,
    )
    assert from_json(done.stdout, GraphAnswer).reason is None
    assert b" torch._C\n" not in done.stderr


def test_operators_of_another_domain_are_refused(tmp_path, source):
    model = onnx.load(source)
    model.graph.node[0].domain = "my.company"
    model.opset_import.append(onnx.helper.make_opsetid("my.company", 1))
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(StepError, match=r"operators that ONNX Runtime does not have: my\.company\.Conv"):
        check_compatibility(tmp_path / "foreign.onnx", 20, 9)


def test_weights_in_another_file_are_refused(tmp_path, source):
    model = onnx.load(source)
    onnx.save(model, tmp_path / "outside.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(StepError, match=r"keeps \d+ tensors in other files"):
        check_compatibility(tmp_path / "outside.onnx", 20, 9)


def test_an_invalid_graph_is_refused(tmp_path, source):
    model = onnx.load(source)
    model.graph.node[0].input[0] = "nothing"
    onnx.save(model, tmp_path / "invalid.onnx")
    with pytest.raises(StepError, match=r"invalid\.onnx is not valid"):
        check_compatibility(tmp_path / "invalid.onnx", 20, 9)
