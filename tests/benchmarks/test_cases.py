"""The runner of users' cases: what it runs, and what it calls right."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks.cases import TIMED_OUT, commands_of, compute_figures, find_fault, is_fact, run_case, run_command

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, pathlib, sys
print("score", sys.argv[1])
pathlib.Path("edgeopt-out").mkdir(exist_ok=True)
pathlib.Path("edgeopt-out/choice.json").write_text(json.dumps({"baseline": {"score": float(sys.argv[1])}}))
"""


def a_case(folder, name, command, program=PROGRAM):
    (folder / name).mkdir()
    (folder / name / "README").write_text(f"Command: {command}\nRight: it is\n")
    (folder / name / "make.py").write_text(program)
    return folder / name


def test_the_commands_of_a_readme():
    line = "Command: python make.py && edgeopt build m.onnx      (and: edgeopt inspect m.onnx)\nSeen: (and: no)"
    assert commands_of(line) == ["python make.py && edgeopt build m.onnx", "edgeopt inspect m.onnx"]
    assert commands_of("Command: edgeopt build a; edgeopt bench b") == ["edgeopt build a", "edgeopt bench b"]
    assert commands_of("Command: edgeopt build a     (my_task.py: with an own Task)") == ["edgeopt build a"]


@pytest.mark.parametrize(
    ("found", "wanted", "right"),
    [(0.5, [0.4, 0.6], True), (0.7, [0.4, 0.6], False), (None, [0, 1], False), (3, "any", True), (None, "any", False),
     (None, "none", True), (320, 320, True), ("float16", "float16", True)],
)  # fmt: skip
def test_facts(found, wanted, right):
    assert is_fact(found, wanted) is right


def test_a_traceback_is_never_right():
    assert "Traceback" in find_fault({"exit": 1}, 1, "Traceback (most recent call last):\n ...", None)
    assert find_fault({"exit": 2, "must": ["no largest logit"]}, 2, "error: has no\n  largest logit", None) == ""


def test_right_wrong_and_silently_wrong_cases(tmp_path):
    accept = [{"exit": 0, "must": ["score 1"], "facts": {"baseline.score": [0.9, 1.0]}}, {"exit": 2}]
    expected = {"accept": accept}
    rows = [
        *run_case(a_case(tmp_path, "right", "python make.py 1.0"), expected, 60),
        *run_case(a_case(tmp_path, "refused", "python make.py", "raise SystemExit(2)"), expected, 60),
        *run_case(a_case(tmp_path, "silent", "python make.py 0.5"), expected, 60),
        *run_case(a_case(tmp_path, "broken", "python make.py && python make.py", "1 / 0"), expected, 60),
        *run_case(a_case(tmp_path, "two", "python make.py 1; python make.py 0.5"), expected, 60),
    ]
    assert [row["right"] for row in rows] == [True, True, False, False, True, False]
    assert compute_figures(rows) == {"cases": 5, "right": 2, "tracebacks": 1, "silent_wrong": 2}
    assert not (tmp_path / "right" / "edgeopt-out").exists()  # it ran in a copy


def test_a_command_that_hangs_is_stopped_with_its_processes(tmp_path):
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    (tmp_path / "make.py").write_text(program)
    code, _, seconds = run_command("python make.py", tmp_path, 1)
    assert code == TIMED_OUT
    assert seconds < 30


def test_a_folder_is_judged_by_its_expectations(tmp_path):
    a_case(tmp_path, "01-right", "python make.py 1.0")
    (tmp_path / "expected.toml").write_text("[[01-right.accept]]\nexit = 0\n")
    command = [sys.executable, ROOT / "benchmarks" / "cases.py", tmp_path, "--out", tmp_path / "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "cases 1  right 1  tracebacks 0  silent_wrong 0"
    assert "right" in done.stdout.splitlines()[0]


def test_the_expectations_of_users_can_be_read():
    expected = tomllib.loads((ROOT / "benchmarks" / "cases" / "users.toml").read_text("utf-8"))
    for case, runs in expected.items():
        for run in runs.get("run", [runs]):
            assert run["accept"], case
            assert all(set(outcome) <= {"exit", "must", "must_not", "facts"} for outcome in run["accept"]), case
