"""The torch workers, real processes: they answer, they fail in words, they die without taking the build along."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from edgeopt.errors import StepError, TaskError
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.pool import WORTH_A_WORKER, TorchPool, available_cores
from edgeopt.planning.low_rank_rule import choose_layers
from edgeopt.records.codec import from_json
from edgeopt.records.groups import GroupTable
from edgeopt.records.low_rank import LowRankTable
from edgeopt.records.recipe import Distill, Importance, LowRank, Prune

TASK = f"{Path(__file__).parent.parent / 'tiny_task.py'}:task"
ORIGINAL = protocol.NetworkRef(source="original", file=None)


A_DISTILLATION = Distill(
    epochs=1, optimizer="sgd", learning_rate=0.01, weight_decay=0.0, warmup_ratio=0.1, temperature=4.0, kl_weight=0.9,
    mse_weight=0.0, hard_weight=0.1,
)  # fmt: skip


@pytest.fixture
def trainers():
    pool = TorchPool(TASK, 1)
    yield pool
    pool.close()


def a_table_job(folder, source="original"):
    network = protocol.NetworkRef(source=source, file=None)
    return protocol.TableJob(network=network, importance=Importance(method="l2"), out=str(folder / "table.json"))


def a_training(folder, steps, out, table=None):
    return protocol.TrainJob(
        parent=ORIGINAL, table=table, steps=steps, seed=0, checkpoint=str(folder / "checkpoint.safetensors"),
        teacher=str(folder / "teacher"), out=str(out),
    )  # fmt: skip


def test_a_worker_does_job_after_job_and_says_what_is_wrong_with_one(trainers, tmp_path):
    trainers.do(a_table_job(tmp_path), protocol.TableDone)
    table = from_json((tmp_path / "table.json").read_bytes(), GroupTable)
    assert table.free
    assert table.parameters({}) > 0
    with pytest.raises(TaskError, match=r"there is no student 'nobody'; there are \['narrow'\]"):
        trainers.do(a_table_job(tmp_path, "nobody"), protocol.TableDone)
    missing = protocol.NetworkRef(source="original", file=str(tmp_path / "gone.safetensors"))
    with pytest.raises(TaskError, match=r"gone\.safetensors cannot be read"):
        trainers.do(protocol.TableJob(network=missing, importance=Importance(method="l1"), out="x"), protocol.TableDone)
    trainers.do(a_table_job(tmp_path, "narrow"), protocol.TableDone)


def test_a_short_trial_tells_how_many_trainings_pay_side_by_side():
    pool = TorchPool(TASK, 2)
    try:
        gain = pool.settle(seconds=0.1)
        assert pool.count in (1, 2)
        assert (gain >= WORTH_A_WORKER) == (pool.count == 2)
        assert pool.speed(1, 0.05) > 0
    finally:
        pool.close()


def test_a_killed_worker_is_an_error_that_names_the_signal_and_the_next_job_gets_a_new_one(trainers, tmp_path):
    with trainers.worker() as worker:
        process = worker.process
    threading.Timer(0.2, process.send_signal, (signal.SIGKILL,)).start()
    with pytest.raises(StepError, match=r"SIGKILL.*--workers 1"):
        trainers.do(a_table_job(tmp_path), protocol.TableDone)
    trainers.do(a_table_job(tmp_path), protocol.TableDone)


def test_a_task_that_cannot_be_loaded_is_the_users_to_mend(tmp_path):
    pool = TorchPool("no_such_module:task", 1)
    with pytest.raises(TaskError, match="no module 'no_such_module'"):
        pool.do(a_table_job(tmp_path), protocol.TableDone)
    pool.close()


def test_a_worker_leaves_when_its_parent_is_killed(tmp_path):
    script = (
        "import time\n"
        "from edgeopt.pipeline.torch_process.pool import Trainers\n"
        f"pool = Trainers({TASK!r}, 1)\n"
        "with pool.worker() as worker:\n"
        "    print(worker.process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 90  # it notices once PyTorch is imported, which a busy machine takes its time for
    while Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.1)


def test_cores_are_counted_by_affinity():
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))


def test_a_worker_factors_layers_trains_them_and_loads_them_again(tmp_path):
    pool = TorchPool(f"{Path(TASK.partition(':')[0]).parent / 'tiny_mlp.py'}:task", 1)
    out = tmp_path / "network.safetensors"
    try:
        job = protocol.LowRankJob(network=ORIGINAL, losses=(0.02, 0.1), step=8, out=str(tmp_path / "factors.json"))
        pool.do(job, protocol.LowRankDone)
        table = from_json((tmp_path / "factors.json").read_bytes(), LowRankTable)
        layers = choose_layers(table, 1, None).layers
        assert set(layers) == {f"layers.{index}.weight" for index in range(3)}
        done = pool.do(a_training(tmp_path, (LowRank(layers=layers), A_DISTILLATION), out), protocol.TrainDone)
        assert done.parameters < 0.1 * table.parameters
        assert done.proof_error < 1e-9
        assert done.best_score > 0.9
        again = protocol.LowRankJob(network=protocol.NetworkRef(source="original", file=str(out)), losses=(0.1,), step=8,
                                out=str(tmp_path / "again.json"))  # fmt: skip
        pool.do(again, protocol.LowRankDone)
        rebuilt = from_json((tmp_path / "again.json").read_bytes(), LowRankTable)
        assert rebuilt.parameters == done.parameters
    finally:
        pool.close()


def test_a_cut_after_a_training_scores_its_channels_anew_and_so_does_a_childs_table(trainers, tmp_path):
    trainers.do(a_table_job(tmp_path), protocol.TableDone)
    table = from_json((tmp_path / "table.json").read_bytes(), GroupTable)
    group = max(table.free, key=lambda one: one.channels)
    rule = Importance(method="l2")
    first, second = (Prune(importance=rule, widths={group.name: width}) for width in (32, 16))
    steps = (first, msgspec.structs.replace(A_DISTILLATION, group_lasso=0.01), second, A_DISTILLATION)
    out = tmp_path / "network.safetensors"
    done = trainers.do(a_training(tmp_path, steps, out, str(tmp_path / "table.json")), protocol.TrainDone)
    assert done.proof_error < 1e-9
    assert not list(tmp_path.glob("checkpoint*"))
    child = protocol.NetworkRef(source="original", file=str(out))
    trainers.do(protocol.TableJob(network=child, importance=rule, out=str(tmp_path / "child.json")), protocol.TableDone)
    anew = from_json((tmp_path / "child.json").read_bytes(), GroupTable)
    scores = next(one.importance for one in anew.free if one.name == group.name)
    assert len(scores) == 16
    assert not set(scores) & set(group.importance)  # of the trained weights, not of those that were inherited


def test_a_profile_and_a_curve_of_zeros_come_from_a_worker(trainers):
    profile = trainers.do(protocol.ProfileJob(network=ORIGINAL), protocol.ProfileDone)
    assert {"stem.0.weight", "body.0.weight", "head.weight"} <= set(profile.ns)
    assert 0 < sum(profile.ns.values()) <= profile.total_ns
    curve = trainers.do(protocol.CurveJob(network=ORIGINAL), protocol.CurveDone).curve
    assert set(curve.points) == {"magnitude", "taylor"}
    assert curve.samples == 128
