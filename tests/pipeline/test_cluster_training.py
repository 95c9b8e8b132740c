"""Trainings on a real Ray cluster of this machine: the same networks as here, also after a worker is lost."""

import os
from contextlib import closing

import msgspec
import pytest
from ray_clusters import a_cluster, needs_ray
from safetensors.torch import load_file
from test_torch_pool import A_DISTILLATION, TASK, a_table_job, a_training

from edgeopt.errors import ConfigError, CrashError, OutOfTimeError
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.cluster.pool import ClusterPool, find_cluster
from edgeopt.pipeline.torch_process.pool import TorchPool

pytestmark = needs_ray

EPOCHS = 40
LONG = msgspec.structs.replace(A_DISTILLATION, epochs=EPOCHS)


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch, a_cluster(2, patch) as found:
        yield found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def pool(cluster, workspace):
    """A pool whose node sees the workspace."""
    found = find_cluster(cluster.address, TASK, workspace)
    with closing(ClusterPool(TASK, 1, found.training(TASK, None))) as pool:
        yield pool


@pytest.fixture(scope="module")
def apart(pool, workspace):
    """A pool whose node doesn't, as far as it can tell: files travel."""
    with closing(ClusterPool(TASK, 1, pool.cluster)) as apart:
        settings = msgspec.structs.replace(pool.cluster.settings, mark=str(workspace / "stages" / "no mark"))
        apart.bridges.task = msgspec.json.encode(settings).decode()
        yield apart


def trained_here(job, folder):
    """Return the weights that this machine makes of a job."""
    out = folder / "here.safetensors"
    with closing(TorchPool(TASK, 1)) as pool:
        pool.do(msgspec.structs.replace(job, out=str(out)), protocol.TrainDone)
    return load_file(out)


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(bool((one[name] == other[name]).all()) for name in one)


def test_a_cluster_trains_the_same_network_as_this_machine(pool, workspace):
    out = workspace / "seen.safetensors"
    job = a_training(workspace, (A_DISTILLATION,), out)
    epochs = []
    done = pool.do(job, protocol.TrainDone, epochs.append)
    pool.do(a_table_job(workspace), protocol.TableDone)
    assert pool.is_idle
    assert done.best_score > 0.9
    assert [one.epoch for one in epochs] == [0]
    assert_same(load_file(out), trained_here(job, workspace))


def test_a_training_whose_worker_is_killed_goes_on_from_its_last_epoch_to_the_same_network(apart, cluster, workspace):
    out = workspace / "killed.safetensors"
    job = a_training(workspace, (LONG,), out)
    epochs = []

    def progress(answer):
        epochs.append(answer.epoch)
        if len(epochs) == 2:
            cluster.kill_actors()

    done = apart.do(job, protocol.TrainDone, progress)
    assert "went on from its last epoch after the cluster lost its worker" in done.notes[-1]
    assert epochs[0] == 0
    assert epochs == sorted(epochs)
    assert set(epochs) == set(range(EPOCHS))
    assert not list(workspace.glob("checkpoint*"))
    assert_same(load_file(out), trained_here(job, workspace))


def test_a_training_that_loses_every_worker_has_failed_and_the_pool_goes_on(apart, cluster, workspace):
    job = a_training(workspace, (LONG,), workspace / "lost.safetensors")
    with pytest.raises(CrashError, match=r"the cluster lost the training's worker 3 times") as found:
        apart.do(job, protocol.TrainDone, lambda _: cluster.kill_actors())
    assert found.value.stage == protocol.CLUSTER_STAGE
    (checkpoint,) = workspace.glob("checkpoint*")
    checkpoint.unlink()
    apart.do(a_training(workspace, (A_DISTILLATION,), workspace / "next.safetensors"), protocol.TrainDone)


def test_a_training_on_a_cluster_stops_when_the_build_does_and_keeps_its_last_epoch(apart, workspace):
    stop = workspace / "stop"
    endless = msgspec.structs.replace(LONG, epochs=100_000)
    job = a_training(workspace, (endless,), workspace / "stopped.safetensors")
    job = msgspec.structs.replace(job, stop_file=str(stop))
    with pytest.raises(OutOfTimeError, match=r"the time was over in epoch .* of 100000"):
        apart.do(job, protocol.TrainDone, lambda _: stop.touch())
    (checkpoint,) = workspace.glob("checkpoint*")
    checkpoint.unlink()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", r"--ray 127\.0\.0\.1:1: nothing answers at 127\.0\.0\.1, port 1 .*`ray status`"),
        ("ray://127.0.0.1:1", r"nothing answers at 127\.0\.0\.1, port 1"),
        ("the cluster", r"this is not an address\. Give auto, ray://HOST:10001 or HOST:6379"),
    ],
)
def test_a_wrong_address_is_named_before_work_begins(address, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        find_cluster(address, TASK, tmp_path)


def test_a_cluster_with_another_version_of_ray_is_named(cluster, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import ray\nray.__version__ = '2.0.0'\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    with pytest.raises(ConfigError, match=r"the cluster runs Ray \S+ on Python \S+, and this is Ray 2\.0\.0 on Python"):
        find_cluster(cluster.address, TASK, tmp_path)


def test_more_cores_than_a_node_has_are_refused(cluster, tmp_path):
    with pytest.raises(ConfigError, match=r"--ray-cores 3: the largest node .* has 2 cores"):
        find_cluster(cluster.address, TASK, tmp_path, cores=3)
