"""The torch workers, as real processes: they answer, report errors, and may die without ending the build."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from safetensors.torch import load_file
from stub_builds import A_DISTILLATION

from edgeopt.errors import StepError, TaskError
from edgeopt.pipeline.search.training_cores import in_parallel
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.pool import MIN_SPEEDUP_RATIO, TorchPool, available_cores
from edgeopt.planning.low_rank_rule import choose_layers
from edgeopt.records.codec import from_json
from edgeopt.records.groups import GroupTable
from edgeopt.records.low_rank import LowRankTable
from edgeopt.records.recipe import Importance, LowRank, Prune, Student

TASK = f"{Path(__file__).parent.parent / 'tiny_task.py'}:task"
ORIGINAL = protocol.NetworkRef(source="original", file=None)


@pytest.fixture
def pool():
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


def test_a_worker_does_job_after_job_and_reports_the_error_of_a_failed_one(pool, tmp_path):
    pool.do(a_table_job(tmp_path), protocol.TableDone)
    table = from_json((tmp_path / "table.json").read_bytes(), GroupTable)
    assert table.free
    assert table.parameters({}) > 0
    with pytest.raises(TaskError, match=r"the task has no student 'nobody', only \['narrow'\]"):
        pool.do(a_table_job(tmp_path, "nobody"), protocol.TableDone)
    missing = protocol.NetworkRef(source="original", file=str(tmp_path / "gone.safetensors"))
    with pytest.raises(TaskError, match=r"gone\.safetensors cannot be read"):
        pool.do(protocol.TableJob(network=missing, importance=Importance(method="l1"), out="x"), protocol.TableDone)
    pool.do(a_table_job(tmp_path, "narrow"), protocol.TableDone)


def test_one_job_after_another_goes_to_the_same_process_which_stays_if_fewer_train(tmp_path):
    pool = TorchPool(TASK, 2)
    try:
        pids = []
        for _ in range(2):
            pool.do(a_table_job(tmp_path), protocol.TableDone)
            with pool.worker() as worker:
                pids.append(worker.process.pid)
        pool.count = 1
        pool.end_surplus()
        assert [worker.process.pid for worker in pool.processes] == [pids[0]]
        assert pids[0] == pids[1]
        assert pool.is_idle
    finally:
        pool.close()


def test_a_short_trial_finds_how_many_parallel_trainings_are_worthwhile():
    pool = TorchPool(TASK, 2)
    try:
        gain = pool.tune_worker_count(seconds=0.1)
        assert pool.count in (1, 2)
        assert (gain >= MIN_SPEEDUP_RATIO) == (pool.count == 2)
        assert pool.speed(1, 0.05) > 0
    finally:
        pool.close()


def test_trainings_that_start_together_share_the_cores_as_far_as_they_use_them():
    pool = TorchPool(TASK, 2, cores=8)
    pool.share_cores(1)
    assert pool.threads == 1, "nothing is known before the trial"
    pool.useful_threads = 8
    threads = {}
    for trainings in (1, 2, 5):
        pool.share_cores(trainings)
        threads[trainings] = pool.threads
    assert threads == {1: 8, 2: 4, 5: 4}
    pool.useful_threads = 2
    pool.share_cores(2)
    assert pool.threads == 2


@pytest.mark.parametrize(
    ("cores", "speeds", "useful"),
    [
        (1, {}, 1),
        (2, {1: 10, 2: 18}, 2),
        (2, {1: 10, 2: 11}, 1),
        (6, {1: 10, 2: 19, 4: 33, 6: 45}, 6),
        (6, {1: 10, 2: 19, 4: 33, 6: 34}, 4),
        (64, {1: 10, 2: 19, 4: 33, 8: 34}, 4),
    ],
)
def test_threads_are_doubled_while_a_training_gets_faster(cores, speeds, useful):
    pool = TorchPool(TASK, 1, cores=cores)
    pool.speed = lambda workers, seconds, threads=1: speeds[threads]
    pool.tune_threads()
    assert pool.useful_threads == useful


@pytest.mark.parametrize(
    ("half", "precision"),
    [
        ({"steps_per_second": 15.0, "gradient_cosine": 0.999}, "bfloat16"),
        ({"steps_per_second": 10.5, "gradient_cosine": 0.999}, "float32"),
        ({"steps_per_second": 15.0, "gradient_cosine": 0.9}, "float32"),
        (None, "float32"),
    ],
)
def test_bfloat16_is_used_if_the_processor_multiplies_it_faster_with_the_same_gradients(half, precision):
    pool = TorchPool(TASK, 1, cores=1)

    def answer(job, kind):
        if job.precision == "bfloat16":
            return protocol.SpeedDone(**half)
        return protocol.SpeedDone(steps_per_second=10.0, multiplies_bfloat16=half is not None)

    pool.do = answer
    pool.tune_precision()
    assert pool.precision == precision


def test_a_trial_in_bfloat16_compares_its_gradient_with_float32(pool):
    done = pool.do(protocol.SpeedJob(seconds=0.05, precision="bfloat16"), protocol.SpeedDone)
    assert 0.9 < done.gradient_cosine < 1.0
    assert pool.do(protocol.SpeedJob(seconds=0.05), protocol.SpeedDone).gradient_cosine == 1.0


FROZEN_TASK = """
import tiny_task

def task():
    made = tiny_task.task()
    build = made._model
    made._model = lambda: build().requires_grad_(False)
    return made
"""


def test_a_network_with_frozen_parameters_is_scored_cut_and_trained(tmp_path, monkeypatch):
    (tmp_path / "frozen.py").write_text(FROZEN_TASK)
    monkeypatch.setenv("PYTHONPATH", str(Path(TASK.partition(":")[0]).parent), prepend=os.pathsep)
    out = tmp_path / "network.safetensors"
    with closing(TorchPool(f"{tmp_path / 'frozen.py'}:task", 1)) as pool:
        rule = Importance(method="taylor")
        pool.do(protocol.TableJob(network=ORIGINAL, importance=rule, out=str(tmp_path / "table")), protocol.TableDone)
        table = from_json((tmp_path / "table").read_bytes(), GroupTable)
        group = max(table.free, key=lambda one: one.channels)
        assert sum(group.importance) > 0
        steps = (Prune(importance=rule, widths={group.name: 24}), A_DISTILLATION)
        done = pool.do(a_training(tmp_path, steps, out, str(tmp_path / "table")), protocol.TrainDone)
    assert done.best_score > 0.3  # chance is a quarter
    assert any("All parameters of the trained network are frozen" in note for note in done.notes)


THREAD_COUNTING_TASK = """
import tiny_task, torch, os
from pathlib import Path
from edgeopt.tasks.classification import Classification

class Counting(Classification):
    def training_step(self, model, inputs, targets, teacher_outputs):
        loss = self.loss(model(inputs), targets)
        running = len(list(Path("/proc/self/task").iterdir()))
        Path(os.environ["COUNTS"]).write_text(f"{torch.get_num_threads()} {running}")
        return loss

def task():
    made = tiny_task.task()
    made.__class__ = Counting
    return made
"""


def test_a_training_has_the_threads_that_its_job_says(tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text(THREAD_COUNTING_TASK)
    monkeypatch.setenv("COUNTS", str(tmp_path / "counts"))
    monkeypatch.setenv("PYTHONPATH", str(Path(TASK.partition(":")[0]).parent), prepend=os.pathsep)
    with closing(TorchPool(f"{tmp_path / 'counting.py'}:task", 1)) as pool:
        for threads in (4, 1):
            job = msgspec.structs.replace(
                a_training(tmp_path, (A_DISTILLATION,), tmp_path / "network.safetensors"), threads=threads
            )
            pool.do(job, protocol.TrainDone)
            used, running = map(int, (tmp_path / "counts").read_text().split())
            assert used == threads
            assert running >= 4, "of the four-thread training, which came first"


def test_a_pool_is_idle_unless_a_process_does_a_job(pool, tmp_path):
    assert pool.is_idle
    with pool.worker():
        assert not pool.is_idle
    pool.do(a_table_job(tmp_path), protocol.TableDone)
    assert pool.is_idle


def test_a_student_begins_with_the_same_weights_whatever_its_process_did_before(tmp_path):
    student = (Student(name="narrow"), A_DISTILLATION)
    networks = []
    for before in ((), (A_DISTILLATION,)):
        with closing(TorchPool(TASK, 1)) as pool:
            if before:
                pool.do(a_training(tmp_path, before, tmp_path / "other.safetensors"), protocol.TrainDone)
            out = tmp_path / f"{len(before)}.safetensors"
            pool.do(a_training(tmp_path, student, out), protocol.TrainDone)
            networks.append(load_file(out))
    assert all(bool((networks[0][name] == networks[1][name]).all()) for name in networks[0])


def test_a_small_data_set_is_trained_for_more_epochs_within_limits():
    step = msgspec.structs.replace(A_DISTILLATION, epochs=10, min_steps=1000)
    assert [step.epochs_for(batches) for batches in (10, 46, 100, 5000)] == [30, 22, 10, 10]
    assert A_DISTILLATION.epochs_for(1) == 1


def test_a_killed_worker_is_an_error_that_names_the_signal_and_the_next_job_gets_a_new_one(pool, tmp_path):
    with pool.worker() as worker:
        process = worker.process
    threading.Timer(0.2, process.send_signal, (signal.SIGKILL,)).start()
    with pytest.raises(StepError, match=r"SIGKILL.*--workers 1"):
        pool.do(a_table_job(tmp_path), protocol.TableDone)
    pool.do(a_table_job(tmp_path), protocol.TableDone)


def test_a_task_that_cannot_be_loaded_is_an_error_of_the_user(tmp_path):
    pool = TorchPool("no_such_module:task", 1)
    with pytest.raises(TaskError, match="no module 'no_such_module'"):
        pool.do(a_table_job(tmp_path), protocol.TableDone)
    pool.close()


def test_other_processes_load_the_task_while_one_works_and_none_is_busy_afterwards(tmp_path):
    with closing(TorchPool(TASK, 2)) as pool:
        with pool.loading_others(1):
            pool.do(a_table_job(tmp_path), protocol.TableDone)
        assert pool.is_idle
        assert len(pool.processes) == 2
    with closing(TorchPool("no_such_module:task", 2)) as pool, pool.loading_others(1):
        pass  # the first training reports it


def test_a_training_goes_on_from_a_cut_that_was_fitted_before_and_ends_the_same(pool, tmp_path):
    pool.do(a_table_job(tmp_path), protocol.TableDone)
    group = max(from_json((tmp_path / "table.json").read_bytes(), GroupTable).free, key=lambda one: one.channels)
    cut = Prune(importance=Importance(method="l2"), widths={group.name: 16}, fitted_samples=64)
    outs = {name: tmp_path / f"{name}.safetensors" for name in ("fitted", "whole", "continued")}
    table = str(tmp_path / "table.json")
    fitted = pool.do(a_training(tmp_path, (cut,), outs["fitted"], table), protocol.TrainDone)
    steps = (cut, A_DISTILLATION)
    whole = pool.do(a_training(tmp_path, steps, outs["whole"], table), protocol.TrainDone)
    job = a_training(tmp_path, steps, outs["continued"])
    job = msgspec.structs.replace(job, fitted=protocol.NetworkRef(source="original", file=str(outs["fitted"])))
    continued = pool.do(job, protocol.TrainDone)
    assert continued.parameters == whole.parameters == fitted.parameters
    assert (continued.best_score, continued.best_epoch) == (whole.best_score, whole.best_epoch)
    one, other = load_file(outs["whole"]), load_file(outs["continued"])
    assert one.keys() == other.keys()
    assert all(bool((one[name] == other[name]).all()) for name in one)


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    script = (
        "import time\n"
        "from edgeopt.pipeline.torch_process.pool import TorchPool\n"
        f"pool = TorchPool({TASK!r}, 1)\n"
        "with pool.worker() as worker:\n"
        "    print(worker.process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 90  # it notices only after importing PyTorch, which is slow on a busy machine
    while Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.1)


def test_a_pool_can_be_closed_twice_as_an_interrupted_round_does(pool, tmp_path):
    pool.do(a_table_job(tmp_path), protocol.TableDone)
    pool.close()
    pool.close()


def test_an_interrupt_in_a_round_reaches_the_caller_as_what_it_is(pool):
    """A round closes the pool, so that no thread waits for it, and the build closes it again."""

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), closing(pool):
        in_parallel(SimpleNamespace(torch_pool=pool), interrupted, [1, 2])


def test_cores_are_counted_by_affinity():
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))


def test_a_worker_factorizes_layers_trains_them_and_loads_them_again(tmp_path):
    pool = TorchPool(f"{Path(TASK.partition(':')[0]).parent / 'tiny_mlp.py'}:task", 1)
    out = tmp_path / "network.safetensors"
    try:
        job = protocol.LowRankJob(network=ORIGINAL, losses=(0.02, 0.1), step=8, out=str(tmp_path / "low_rank.json"))
        pool.do(job, protocol.LowRankDone)
        table = from_json((tmp_path / "low_rank.json").read_bytes(), LowRankTable)
        layers = choose_layers(table, 1, None).layers
        assert set(layers) == {f"layers.{index}.weight" for index in range(3)}
        done = pool.do(a_training(tmp_path, (LowRank(layers=layers), A_DISTILLATION), out), protocol.TrainDone)
        assert done.parameters < 0.1 * table.parameters
        assert done.proof_error < 1e-9
        assert done.best_score > 0.9
        rebuilt = protocol.NetworkRef(source="original", file=str(out))
        again = protocol.LowRankJob(network=rebuilt, losses=(0.1,), step=8, out=str(tmp_path / "again.json"))
        pool.do(again, protocol.LowRankDone)
        rebuilt_table = from_json((tmp_path / "again.json").read_bytes(), LowRankTable)
        assert rebuilt_table.parameters == done.parameters
    finally:
        pool.close()


def test_pruning_after_a_training_scores_the_channels_again_and_so_does_the_table_of_a_trained_network(pool, tmp_path):
    pool.do(a_table_job(tmp_path), protocol.TableDone)
    table = from_json((tmp_path / "table.json").read_bytes(), GroupTable)
    group = max(table.free, key=lambda one: one.channels)
    rule = Importance(method="l2")
    first, second = (Prune(importance=rule, widths={group.name: width}) for width in (32, 16))
    steps = (first, msgspec.structs.replace(A_DISTILLATION, group_lasso=0.01), second, A_DISTILLATION)
    out = tmp_path / "network.safetensors"
    done = pool.do(a_training(tmp_path, steps, out, str(tmp_path / "table.json")), protocol.TrainDone)
    assert done.proof_error < 1e-9
    assert not list(tmp_path.glob("checkpoint*"))
    trained = protocol.NetworkRef(source="original", file=str(out))
    pool.do(protocol.TableJob(network=trained, importance=rule, out=str(tmp_path / "trained.json")), protocol.TableDone)
    rescored = from_json((tmp_path / "trained.json").read_bytes(), GroupTable)
    scores = next(one.importance for one in rescored.free if one.name == group.name)
    assert len(scores) == 16
    assert not set(scores) & set(group.importance)  # of the trained weights, not of the inherited ones


def test_a_profile_and_a_curve_of_zeros_come_from_a_worker(pool):
    profile = pool.do(protocol.ProfileJob(network=ORIGINAL), protocol.ProfileDone)
    assert {"stem.0.weight", "body.0.weight", "head.weight"} <= set(profile.ns)
    assert 0 < sum(profile.ns.values()) <= profile.total_ns
    curve = pool.do(protocol.CurveJob(network=ORIGINAL), protocol.CurveDone).curve
    assert set(curve.points) == {"magnitude", "taylor"}
    assert curve.samples == 128


@pytest.mark.parametrize(
    ("cores", "useful", "workers", "busy"),
    [(2, 1, 2, 2), (2, 2, 2, 2), (8, 4, 2, 8), (64, 8, 8, 64), (64, 4, 16, 64), (64, 16, 4, 64), (6, 4, 2, 6)],
)
def test_as_many_trainings_run_at_a_time_as_there_are_cores_for(cores, useful, workers, busy):
    pool = TorchPool(TASK, min(16, cores), cores=cores)
    pool.speed = lambda count, seconds, threads=1: count * min(threads, useful) * 10.0
    pool.tune_precision = lambda seconds: None
    found = pool.tune(fixed_workers=False, least=2)
    assert (found.workers, found.useful_threads) == (workers, useful)
    pool.share_cores(found.workers)
    assert pool.count * pool.threads == pytest.approx(busy, rel=0.01)
