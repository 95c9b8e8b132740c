"""What a cluster needs of a build, without a cluster: room, code that travels, and a node that sees nothing of ours."""

import os
import shutil
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import click
import msgspec
import pytest
from stub_builds import a_stub_build
from test_torch_pool import A_DISTILLATION, TASK, a_training

import edgeopt
from edgeopt.cli.build import command as edgeopt_build
from edgeopt.errors import ConfigError, CrashError, TaskError
from edgeopt.pipeline.artifacts.trained_networks import train_with_retry
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.cluster import files
from edgeopt.pipeline.torch_process.cluster import pool as cluster_pool
from edgeopt.pipeline.torch_process.cluster.code import code_of, copy_code, hash_code
from edgeopt.pipeline.torch_process.cluster.node import NodeTraining, sees_code
from edgeopt.pipeline.torch_process.cluster.pool import Cluster, ClusterPool, find_cluster
from edgeopt.pipeline.torch_process.cluster.settings import BridgeSettings, NodeSettings
from edgeopt.records.codec import from_json, to_json


def a_cluster_with(tmp_path, *nodes, gpus=(), cores=None):
    """A cluster with nodes of that many cores and GPUs."""
    settings = BridgeSettings(
        address="auto", task=TASK, workspace=str(tmp_path), mark=str(tmp_path / "stages" / "mark")
    )
    room = protocol.RoomDone(cores=nodes, gpus=gpus or (0,) * len(nodes), sees_code=True)
    return Cluster(settings, room, cores)


@pytest.mark.parametrize(
    ("nodes", "useful", "trainings", "threads"),
    [((2,), 2, 2, 1), ((2,), 2, 1, 2), ((2, 2), 2, 2, 2), ((8, 4), 4, 3, 4), ((8, 4), 8, 2, 4), ((2,), 1, 5, 1)],
)
def test_each_training_gets_the_cores_that_it_uses_as_long_as_all_have_room(
    tmp_path, nodes, useful, trainings, threads
):
    with closing(ClusterPool(TASK, trainings, a_cluster_with(tmp_path, *nodes))) as pool:
        pool.useful_threads = useful
        pool.share_cores(trainings)
        assert pool.threads == threads


@pytest.mark.parametrize(("nodes", "cores", "workers"), [((2,), 2, None), ((4, 4), 4, 4), ((8,), 8, None)])
def test_each_training_has_the_cores_that_the_user_set_and_those_without_room_wait(tmp_path, nodes, cores, workers):
    with closing(ClusterPool(TASK, workers or 4, a_cluster_with(tmp_path, *nodes, cores=cores))) as pool:
        pool.tune_precision = lambda seconds: None
        found = pool.tune(fixed_workers=workers is not None, least=2)
        pool.share_cores(pool.count)
        assert (pool.threads, found.workers) == (cores, workers or 2)


def test_cores_for_a_cluster_without_a_cluster_are_refused():
    with pytest.raises(click.UsageError, match=r"--ray-cores 3 sets the cores .* it goes with --ray ADDRESS"):
        edgeopt_build.main(["fashion", "--target", "phone", "--ray-cores", "3"], standalone_mode=False)


def test_as_many_trainings_run_at_a_time_as_the_cluster_has_room_for(tmp_path):
    with closing(ClusterPool(TASK, 16, a_cluster_with(tmp_path, 8, 8, cores=4))) as pool:
        pool.tune_precision = lambda seconds: None
        found = pool.tune(fixed_workers=False, least=2)
        assert (found.workers, found.useful_threads) == (4, 4)
    with closing(ClusterPool(TASK, 3, a_cluster_with(tmp_path, 8, 8, cores=8))) as pool:
        pool.tune_precision = lambda seconds: None
        assert pool.tune(fixed_workers=True).workers == 3


def test_each_training_has_a_gpu_if_the_cluster_has_some_unless_the_task_trains_on_the_processor(tmp_path):
    cluster = a_cluster_with(tmp_path, 8, 8, gpus=(2, 1))
    assert cluster.training(TASK, edgeopt.Training()).places() == 3
    assert cluster.training(TASK, edgeopt.Training(device="cpu")).places() == 16
    with pytest.raises(TaskError, match=r"training\.processes is 2, but on a cluster"):
        cluster.training(TASK, edgeopt.Training(processes=2))


def test_without_ray_the_option_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"the package ray isn't installed\. .*pip install 'edgeopt\[ray\]'"):
        find_cluster("auto", TASK, tmp_path)


def test_a_task_file_that_is_missing_is_named_before_the_cluster_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(__spec__="installed"))
    (tmp_path / "task.py").touch()
    with pytest.raises(TaskError, match=r"task file .*tusk\.py does not exist \(did you mean 'task\.py'\?\)"):
        find_cluster("127.0.0.1:1", f"{tmp_path}/tusk.py:task", tmp_path)


@pytest.mark.parametrize("sees_code", [True, False])
def test_code_that_is_too_much_is_refused_before_work_and_weights_that_are_not_sent_are_named(
    tmp_path, monkeypatch, sees_code
):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(__spec__="installed"))
    room = protocol.RoomDone(cores=(2,), gpus=(0,), sees_code=sees_code)
    monkeypatch.setattr(cluster_pool, "_look_at_cluster", lambda _: room)
    (tmp_path / "task.py").touch()
    for name in ("nets/large.pt", "small.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(65 << 20 if name == "nets/large.pt" else 60 << 20)
    lines = []
    task = f"{tmp_path}/task.py:task"
    found = find_cluster("auto", task, tmp_path, progress=lambda _, text: lines.append(text))
    assert found.settings.sends_code != sees_code
    assert [("larger than 64 MiB: nets/large.pt;" in line) for line in lines] == ([] if sees_code else [True])
    for number in range(7):
        os.link(tmp_path / "small.pt", tmp_path / f"small-{number}.pt")
    if sees_code:
        find_cluster("auto", task, tmp_path)
    else:
        with pytest.raises(ConfigError, match=r"are more than 400 MiB, too much to send to a cluster"):
            find_cluster("auto", task, tmp_path)


def test_a_training_that_a_cluster_lost_is_not_tried_again_in_half_batches(tmp_path):
    tries = []

    def lose(*_):
        tries.append(1)
        raise CrashError(protocol.CLUSTER_STAGE, "the cluster lost the training's worker 3 times")

    build = a_stub_build(torch_pool=SimpleNamespace(do=lose))
    with pytest.raises(CrashError, match="3 times"):
        train_with_retry(build, a_training(tmp_path, (A_DISTILLATION,), tmp_path / "out"), lambda _: None)
    assert len(tries) == 1


def test_code_and_weights_travel_but_no_data_environments_or_results(tmp_path):
    kept = ["task.py", "nets/conv.py", "settings.toml", "best.pt"]
    left = ["images/1.jpg", "rows.csv", ".git/hook.py", "env/lib/x.py", "env/pyvenv.cfg", "out/choice.json",
            "out/model.onnx", "work/ledger.sqlite", "work/a.onnx", "page/node_modules/gyp/x.py",
            "conda/conda-meta/history", "conda/lib/x.py"]  # fmt: skip
    for name in (*kept, *left):
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_bytes(b"x")
    (tmp_path / "project" / "annotations.json").write_bytes(bytes(2 << 20))
    copy_code(tmp_path / "project", tmp_path / "copy")
    found = [
        path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*") if path.is_file()
    ]
    assert sorted(found) == sorted(kept)


def test_the_code_of_a_task_is_its_file_or_the_file_of_its_module(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert code_of("fashion") is None
    assert code_of("model.onnx") is None
    assert code_of("edgeopt.tasks.ready.fashion:task") is None
    assert code_of("numpy.linalg:norm") is None
    file = Path(TASK.rpartition(":")[0])
    assert code_of(TASK) == (file, file.parent)
    assert code_of("mine.tasks:task") == (tmp_path / "mine" / "__init__.py", tmp_path)


def test_the_code_of_a_task_in_a_folder_without_init_is_the_module_and_travels_with_that_folder(tmp_path, monkeypatch):
    for name in ("loose/tasks.py", "loose/more/nets/__init__.py", "dist-packages/debian/tasks.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.syspath_prepend(tmp_path / "dist-packages")
    monkeypatch.syspath_prepend(tmp_path)
    assert code_of("loose.tasks:task") == (tmp_path / "loose" / "tasks.py", tmp_path)
    assert code_of("loose.more.nets:task") == (tmp_path / "loose" / "more" / "nets" / "__init__.py", tmp_path)
    assert code_of("debian.tasks:task") is None, "Debian's packages are installed on every node"
    assert code_of("loose:task") is None
    assert code_of("loose.nothing:task") is None


def node_settings(tmp_path, task, **changes):
    """What a node is told of a task whose build runs here, with a workspace that it doesn't see."""
    code = code_of(task)
    settings = NodeSettings(
        task=task, code=code and str(code.file), code_root=code and str(code.root),
        code_sha256=code and hash_code(code.root), folder=str(tmp_path), workspace=str(tmp_path / "w"),
        mark=str(tmp_path / "w" / "stages" / "mark"), environment={},
    )  # fmt: skip
    return msgspec.structs.replace(settings, **changes)


@pytest.mark.parametrize(("task", "changed"), [("{}/task.py:task", "helper.py"), ("pkg.tasks:task", "pkg/tasks.py")])
def test_a_node_has_the_code_only_if_all_its_python_files_are_the_same(tmp_path, monkeypatch, task, changed):
    for name in ("task.py", "helper.py", "pkg/__init__.py", "pkg/tasks.py", ".venv/a.py", "w/ledger.sqlite", "w/b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    settings = node_settings(tmp_path, task.format(tmp_path))
    for name in (".venv/a.py", "w/b.py"):
        (tmp_path / name).write_text("other = 1")
    assert sees_code(settings), "neither an environment nor a workspace is code"
    (tmp_path / changed).rename(tmp_path / "renamed.py")
    assert not sees_code(settings)
    (tmp_path / "renamed.py").rename(tmp_path / changed)
    assert sees_code(settings)
    (tmp_path / changed).write_text("other = 1")
    assert not sees_code(settings)


def test_the_variables_of_a_build_reach_every_training_but_no_path_of_code_goes_with_a_copy(tmp_path, monkeypatch):
    (tmp_path / "task.py").touch()
    variables = {"EDGEOPT_DATA": str(tmp_path / "data"), "PYTHONPATH": str(tmp_path)}
    ready = node_settings(tmp_path, "fashion", environment=variables)
    copied = node_settings(
        tmp_path, f"{tmp_path}/task.py:task", environment=variables, code_sha256="other", code_is_sent=True
    )
    for settings, passes_path in ((ready, True), (copied, False)):
        monkeypatch.setenv("EDGEOPT_DATA", "/nowhere")
        monkeypatch.setenv("PYTHONPATH", "/nowhere")
        with closing(NodeTraining(to_json(settings))) as node:
            node._prepare_task()
        assert os.environ["EDGEOPT_DATA"] == str(tmp_path / "data")
        assert (str(tmp_path) in os.environ["PYTHONPATH"]) == passes_path


def test_a_node_whose_code_has_changed_since_the_build_began_says_so_instead_of_training(tmp_path):
    (tmp_path / "task.py").touch()
    settings = node_settings(tmp_path, f"{tmp_path}/task.py:task")
    (tmp_path / "task.py").write_text("other = 1")
    with closing(NodeTraining(to_json(settings))) as node:
        node.begin(to_json(a_training(tmp_path / "w", (A_DISTILLATION,), tmp_path / "w" / "out")), {})
        answer = from_json(node.next()[0], protocol.TorchAnswer)
    assert answer.kind == "crashed"
    assert f"the Python files in {tmp_path} on this node of the cluster are not those" in answer.reason


def test_the_files_of_a_training_lie_at_the_same_places_in_the_folder_of_a_node(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    names = ["networks/parent", "tables/sites", "tables/values", "arrays/inputs", "tables/table"]
    names += ["networks/fitted", "checkpoint-0.safetensors"]
    files.write_files(dict.fromkeys(names, b"x"), here)
    parent, sites, values, inputs, table, fitted = (str(here / name) for name in names[:6])
    job = msgspec.structs.replace(
        a_training(here, (A_DISTILLATION,), here / "networks" / "out", table),
        parent=protocol.NetworkRef(source="original", file=parent),
        fitted=protocol.NetworkRef(source="original", file=fitted),
        int8=protocol.Int8Reference(
            sites=sites, values=values, inputs=inputs, expected=str(here / "arrays" / "expected")
        ),
    )
    named = {name for name, hint in get_type_hints(protocol.TrainJob).items() if "NetworkRef" in str(hint)}
    assert named == {"parent", "fitted"}, "a further network has to travel too"
    sent = files.read_files(files.input_files(job, TASK), here)
    assert sorted(sent) == sorted(names)
    moved = files.moved(job, here, there)
    assert not [word for word in to_json(moved).decode().split('"') if word.startswith(str(here))]
    files.write_files(sent, there)
    assert len(files.input_files(moved, TASK)) == len(names)
    files.write_files({"networks/out": b"x", "arrays/expected": b"x"}, there)
    assert sorted(files.read_files(files.output_files(moved), there)) == ["arrays/expected", "networks/out"]


def test_a_node_that_sees_neither_workspace_nor_code_trains_with_what_was_sent(tmp_path, monkeypatch):
    sent, workspace, far = tmp_path / "sent", tmp_path / "workspace", tmp_path / "far"
    sent.mkdir()
    shutil.copy(TASK.rpartition(":")[0], sent)
    settings = NodeSettings(
        task=TASK, code=str(far / "tiny_task.py"), code_root=str(far), code_sha256=hash_code(code_of(TASK).root),
        code_is_sent=True, folder=str(far), workspace=str(workspace), mark=str(far / "stages" / "mark"), environment={},
    )  # fmt: skip
    monkeypatch.chdir(sent)
    step = msgspec.structs.replace(A_DISTILLATION, epochs=20)
    job = a_training(workspace, (step,), workspace / "networks" / "out.safetensors")
    node = NodeTraining(to_json(settings))
    folder = node.folder
    assert node.needs_files()
    node.begin(to_json(job), {})
    answers = []
    while not answers or isinstance(answers[-1], protocol.EpochProgress):
        text, changed = node.next()
        answers.append(from_json(text, protocol.TorchAnswer))
        files.write_files(changed, workspace)
    node.close()
    assert not folder.exists()
    assert isinstance(answers[-1], protocol.TrainDone), answers[-1]
    assert (workspace / "networks" / "out.safetensors").stat().st_size > 0
    assert (workspace / "checkpoint-0.safetensors").exists(), "the state after an epoch came too"
