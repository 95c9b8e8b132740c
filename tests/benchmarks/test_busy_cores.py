"""The benchmark of busy cores: what counts as training, and whose processor time."""

import os
import subprocess
import sys
import time

import pytest

from benchmarks.busy_cores import Phases, ProcessTree, summarize


def test_only_times_in_which_something_trains_count():
    rows = [(0, 0, []), (1, 1, [1, 1]), (2, 3, [1, 1]), (3, 4.6, [1, 1]), (4, 5, [2]), (5, 7, [2]), (6, 7, [])]
    samples = [{"seconds": at, "cpu_seconds": cpu, "threads": threads} for at, cpu, threads in rows]
    figures = summarize(samples, cores=2)
    expected = {
        "busy_ratio": (2 + 1.6 + 2) / 3 / 2, "busy_ratio_2_trainings": 3.6 / 2 / 2, "busy_ratio_1_trainings": 1.0,
        "training_seconds": 3, "cores": 2,
    }  # fmt: skip
    assert figures == pytest.approx(expected)


def test_trainings_begin_and_end_by_the_lines_of_the_debug_log():
    phases = Phases()
    phases.read(
        "10:00:00 edgeopt.pipeline.torch_process.pool: torch process 7: TrainJob TrainJob(parent=1, threads=2, x)"
    )
    phases.read("10:00:00 edgeopt.pipeline.torch_process.pool: torch process 8: ExportJob ExportJob(threads=9)")
    assert phases.running == {"7": 2}
    phases.read("10:00:09 edgeopt.pipeline.torch_process.pool: torch process 7: TrainJob took 9.0 s: TrainDone()")
    assert phases.running == {}


def test_the_processor_time_of_children_counts():
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        tree, deadline = ProcessTree(process.pid), time.monotonic() + 60
        while tree.cpu_seconds() < 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(tree.seconds) >= 2
    finally:
        os.killpg(process.pid, 9)
        process.wait()
