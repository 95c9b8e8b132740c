"""Stages that several variants begin with are made once; what failed or is large is made again."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from edgeopt.errors import StepError
from edgeopt.pipeline.artifacts import shared_stages
from edgeopt.pipeline.artifacts.shared_stages import MadeStage, SharedStages, forget_stages, without_old_stages
from edgeopt.records.recipe import Compact, FlushDenormals, Simplify
from edgeopt.store.workspace import Workspace

STEPS = (Simplify(), FlushDenormals())
STAGE = MadeStage(notes=("simplify: 3 nodes fewer",), parity=None)


@pytest.fixture
def build(tmp_path):
    workspace = Workspace(tmp_path)
    for name in ("artifacts", "stages"):
        workspace.folder(name).mkdir(parents=True)
    workspace.artifact("a").write_bytes(b"0" * 100)
    return SimpleNamespace(workspace=workspace)


class Maker:
    def __init__(self, fails=False):
        self.fails, self.calls = fails, 0

    def __call__(self, path):
        self.calls += 1
        if self.fails:
            raise StepError("simplified", "differs")
        path.write_bytes(b"graph")
        return STAGE


def stages(build):
    return SharedStages(build, SimpleNamespace(key="n"), SimpleNamespace(sha256="a"))


def test_the_same_steps_are_made_once_and_others_apart(build, tmp_path):
    first, second = Maker(), Maker()
    path, found = stages(build).make(STEPS, None, tmp_path / "own.onnx", first)
    assert (path.read_bytes(), found) == (b"graph", STAGE)
    assert stages(build).make(STEPS, None, tmp_path / "own.onnx", second) == (path, STAGE)
    assert (first.calls, second.calls) == (1, 0)
    others = [(STEPS[:1], None), ((*STEPS, Compact()), None), (STEPS, tmp_path / "samples.npz")]
    paths = {stages(build).make(*one, tmp_path / "own.onnx", Maker())[0] for one in others}
    assert len(paths | {path}) == 4
    forget_stages(build)
    assert not path.exists()
    stages(build).make(STEPS, None, tmp_path / "own.onnx", second)
    assert second.calls == 1


def test_a_stage_that_failed_is_tried_again(build, tmp_path):
    for _ in range(2):
        with pytest.raises(StepError):
            stages(build).make(STEPS, None, tmp_path / "own.onnx", Maker(fails=True))
    again = Maker()
    stages(build).make(STEPS, None, tmp_path / "own.onnx", again)
    assert again.calls == 1


def test_large_files_are_not_kept(build, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_stages, "MAX_BYTES", 99)
    maker = Maker()
    for _ in range(2):
        assert stages(build).make(STEPS, None, tmp_path / "own.onnx", maker) == (tmp_path / "own.onnx", STAGE)
    assert maker.calls == 2


def test_threads_that_begin_alike_wait_for_one_of_them(build, tmp_path):
    slow = Maker()

    def make(path):
        time.sleep(0.2)
        return slow(path)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: stages(build).make(STEPS, None, tmp_path / "own.onnx", make), range(4)))
    assert slow.calls == 1
    assert len({path for path, _ in found}) == 1


def test_what_a_killed_build_left_is_not_used(build, tmp_path):
    path, _ = stages(build).make(STEPS, None, tmp_path / "own.onnx", Maker())
    again = Maker()
    with without_old_stages(build):
        stages(build).make(STEPS, None, tmp_path / "own.onnx", again)
    assert again.calls == 1
    assert not path.exists()
