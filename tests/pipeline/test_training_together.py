"""Several processes train one network together: it becomes the one that a single process trains, and none is left."""

from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgeopt.errors import CrashError, TaskError
from edgeopt.passes.distill.compute import training_gpus
from edgeopt.passes.distill.parts import TaughtBatch, own_part
from edgeopt.passes.distill.ranks import Ranks
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.pool import TorchPool
from edgeopt.records.recipe import Distill
from edgeopt.task import Training
from edgeopt.task.batch_axes import BatchAxes

TESTS = Path(__file__).parents[1]
ROWS = f"{TESTS / 'together_task.py'}:task"
TINY = f"{TESTS / 'tiny_task.py'}:task"
STEP = Distill(
    epochs=2, optimizer="sgd", learning_rate=0.05, weight_decay=5e-4, warmup_ratio=0.1, temperature=4.0, kl_weight=0.5,
    mse_weight=0.0, hard_weight=0.5,
)  # fmt: skip
FLOAT32_SUMS = 1e-5
"""Sums in another order, over eight steps."""


def train(pool: TorchPool, folder: Path, **changes) -> protocol.TrainDone:
    folder.mkdir(exist_ok=True)
    job = protocol.TrainJob(
        parent=protocol.NetworkRef(source="original", file=None), table=None, steps=(STEP,), seed=0,
        checkpoint=str(folder / "checkpoint.safetensors"), teacher=str(folder / "teacher"),
        out=str(folder / "network.safetensors"), **changes,
    )  # fmt: skip
    return pool.do(job, protocol.TrainDone)


def test_two_processes_train_the_network_that_one_trains(tmp_path):
    with closing(TorchPool(ROWS, 1)) as alone, closing(TorchPool(ROWS, 1, ranks=2)) as pair:
        one = train(alone, tmp_path / "one")
        two = train(pair, tmp_path / "two")
        careful = train(pair, tmp_path / "careful", careful=True)
        processes = [member.process for member in pair.group(pair.processes[0])]
    assert two.notes == ("trained by 2 processes together, on cpu",)
    assert (two.best_epoch, two.best_score) == (one.best_epoch, one.best_score)
    expected = load_file(tmp_path / "one" / "network.safetensors")
    for folder in ("two", "careful"):
        found = load_file(tmp_path / folder / "network.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=FLOAT32_SUMS, atol=FLOAT32_SUMS)
        assert not list((tmp_path / folder).glob("checkpoint*"))
    assert careful.best_score == one.best_score
    assert len({process.pid for process in processes}) == 2
    assert all(process.poll() is not None for process in processes), "both end with the pool"


def test_batch_norm_is_averaged_and_both_processes_end_with_one_network(tmp_path):
    with closing(TorchPool(TINY, 1)) as alone, closing(TorchPool(TINY, 1, ranks=2)) as pair:
        one = train(alone, tmp_path / "one")
        two = train(pair, tmp_path / "two")
    assert two.best_score == pytest.approx(one.best_score, abs=0.02)
    first, second = (load_file(tmp_path / folder / "network.safetensors") for folder in ("one", "two"))
    means = [name for name in first if name.endswith("running_mean")]
    assert means
    for name in means:
        torch.testing.assert_close(second[name], first[name], rtol=0.3, atol=0.05)


def test_processes_whose_loaders_differ_in_length_stop_together(tmp_path, monkeypatch):
    monkeypatch.setenv("TOGETHER_TASK_FAULT", "uneven")
    with closing(TorchPool(ROWS, 1, ranks=2)) as pool:
        assert train(pool, tmp_path / "one").best_score is not None


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("error", TaskError, r"loss\(\) failed with ValueError: no loss here \(file .*together_task\.py, line \d+"),
        ("kill", CrashError, "was killed by SIGKILL"),
        ("targets", TaskError, r"training\.processes is 2, but a training batch .* cannot be split"),
    ],
)
def test_what_one_process_fails_with_is_the_answer_and_ends_the_other(tmp_path, monkeypatch, fault, kind, reason):
    monkeypatch.setenv("TOGETHER_TASK_FAULT", fault)
    with closing(TorchPool(ROWS, 1, ranks=2)) as pool:
        with pytest.raises(kind, match=reason):
            train(pool, tmp_path)
        assert all(member.process.poll() is not None for member in (*pool.processes, *pool.others.values()))
        if fault != "kill":
            return
        monkeypatch.delenv("TOGETHER_TASK_FAULT")
        assert train(pool, tmp_path).best_score is not None, "the next training gets new processes"


def test_threads_are_shared_out_among_all_processes():
    pool = TorchPool(ROWS, 2, cores=8, ranks=2)
    pool.useful_threads = 8
    pool.share_cores(2)
    assert pool.threads == 2
    pool.share_cores(1)
    assert pool.threads == 4


def test_a_batch_too_small_to_share_is_computed_by_all_with_its_share_of_the_loss():
    ranks = Ranks()
    ranks.size = 4
    axes = BatchAxes((0,), (0,))
    small = TaughtBatch((torch.arange(7.0)[:, None],), torch.arange(7), (torch.arange(7),))
    assert own_part(small, axes, ranks).weight == 0.25
    assert len(own_part(small, axes, ranks).targets) == 7
    large = TaughtBatch((torch.arange(9.0)[:, None],), torch.arange(9), (torch.arange(9),))
    parts = []
    for ranks.rank in range(4):
        parts.append(own_part(large, axes, ranks))
    assert [len(part.targets) for part in parts] == [3, 2, 2, 2]
    assert torch.cat([part.targets for part in parts]).tolist() == list(range(9))
    assert sum(part.weight for part in parts) == pytest.approx(1)


def test_more_processes_than_gpus_are_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert len(training_gpus(Training(device="cuda", processes=2))) == 2
    with pytest.raises(TaskError, match=r"training\.processes is 3.*cuda:0 \(a GPU\), cuda:1.*at most 2"):
        training_gpus(Training(device="cuda", processes=3))
    with pytest.raises(TaskError, match=r"training\.processes is 0; it has to be 1 or more"):
        training_gpus(Training(processes=0))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train_the_network_that_one_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("TOGETHER_TASK_DEVICE", "cuda")
    with closing(TorchPool(ROWS, 1)) as alone, closing(TorchPool(ROWS, 1, ranks=2)) as pair:
        one, two = train(alone, tmp_path / "one"), train(pair, tmp_path / "two")
    assert two.notes[0] == "trained by 2 processes together, on cuda"
    assert two.best_score == pytest.approx(one.best_score, abs=0.05)
