"""Data of a task: the user's code is called by one thread at a time, and files of samples are made once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tiny_task
import torch

import edgeopt
from edgeopt.errors import TaskError
from edgeopt.pipeline.task_data import TaskData
from edgeopt.store.workspace import Workspace
from edgeopt.task import CheckedTask
from edgeopt.tasks.given.onnx_file import OnnxTask


class CountedBatches:
    """A task's batches that refuse to be read by two threads at a time."""

    def __init__(self):
        self.reads = 0
        self.lock = threading.Lock()

    def __call__(self, seed=0):
        assert self.lock.acquire(blocking=False), "two threads at a time"
        try:
            self.reads += 1
            time.sleep(0.05)
            yield from tiny_task.batches(64, seed)
        finally:
            self.lock.release()


def test_variants_that_need_calibration_at_the_same_time_read_the_samples_once(tmp_path):
    train = CountedBatches()
    task = CheckedTask(edgeopt.classification(tiny_task.TinyNet(8), train, tiny_task.batches(64, 1000)), "tests")
    with Workspace(tmp_path / "workspace").open() as workspace:
        data = TaskData(task, workspace)
        reads = train.reads
        with ThreadPoolExecutor(4) as pool:
            paths = list(pool.map(data.calibration_file, [32] * 4))
    assert len(set(paths)) == 1
    assert train.reads == reads + 1


def test_scores_are_computed_by_one_thread_at_a_time(tmp_path):
    busy = threading.Lock()

    def score(pairs):
        assert busy.acquire(blocking=False), "two threads at a time"
        time.sleep(0.05)
        busy.release()
        return 0.5

    network = tiny_task.TinyNet(8)
    task = edgeopt.classification(network, lambda seed: tiny_task.batches(64, seed), tiny_task.batches(64, 1000))
    task.score = score
    with Workspace(tmp_path / "workspace").open() as workspace:
        data = TaskData(CheckedTask(task, "tests"), workspace)
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda _: data._call_user("score()", data.task.score, []), range(4))) == {0.5}


def golden_of(folder, own=None):
    batches = tiny_task.batches(64, 1000)
    task = edgeopt.classification(tiny_task.TinyNet(8), lambda seed: tiny_task.batches(64, seed), batches)
    if own is not None:
        task.golden_inputs = lambda: own
    with Workspace(folder / "workspace").open() as workspace:
        return TaskData(CheckedTask(task, "tests"), workspace).golden_inputs["input"]


def test_golden_samples_are_of_every_class(tmp_path):
    x, labels = (torch.cat(parts) for parts in zip(*tiny_task.batches(64, 1000), strict=True))
    golden = golden_of(tmp_path)
    rows = [int((x == torch.from_numpy(one)).flatten(1).all(1).nonzero()[0]) for one in golden]
    assert len(rows) == 8
    assert set(labels[rows].tolist()) == {0, 1, 2, 3}


def test_a_task_may_show_other_samples(tmp_path):
    np.testing.assert_array_equal(golden_of(tmp_path, torch.ones(3, 1, 8, 8)), np.ones((3, 1, 8, 8), np.float32))


def test_other_samples_of_a_wrong_shape_are_refused(tmp_path):
    with pytest.raises(TaskError, match=r"golden_inputs\(\)"):
        golden_of(tmp_path, torch.ones(3, 1, 9, 8))


def test_metadata_of_a_given_file_is_kept_but_not_what_an_earlier_build_wrote():
    task = OnnxTask.__new__(OnnxTask)
    model = onnx.ModelProto()
    for key in ("names", "edgeopt.labels", "edgeopt.inputs"):
        model.metadata_props.add(key=key, value="of the given file")
    task.given = SimpleNamespace(model=model)
    assert TaskData.given_metadata.func(SimpleNamespace(task=task)) == {"names": "of the given file"}
    assert TaskData.given_metadata.func(SimpleNamespace(task=None)) == {}
