"""What a build looks up in its ledger is this device's own."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from builders import a_profile
from stub_builds import a_stub_build

from edgeopt.bench.outputs import write_batches
from edgeopt.errors import TaskError
from edgeopt.pipeline.artifacts import evaluator as evaluator_module
from edgeopt.pipeline.artifacts.evaluator import Evaluator
from edgeopt.records.measurement import DeviceInfo
from edgeopt.store.ledger import Ledger
from edgeopt.store.workspace import Workspace


class CountingEvaluator(Evaluator):
    """Its device gives one number for every file; what ran there is noted."""

    ran: tuple[str, ...] = ()

    def outputs(self, sha256: str, inputs: Path) -> Path:
        self.ran += (sha256,)
        target = self.build.workspace.folder("arrays") / f"outputs-{len(self.ran)}.npz"
        write_batches(target, [{"y": np.array([self.build.computes])}])
        return target


@pytest.fixture
def on(tmp_path):
    """Return an evaluator for a named device; all share one workspace."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    workspace = Workspace(tmp_path)
    workspace.folder("arrays").mkdir(parents=True)
    data = SimpleNamespace(
        score_kind=None,
        task=SimpleNamespace(spec="t"),
        eval_file=tmp_path / "eval.npz",
        counts=[1],
        targets=[0],
        pairs=lambda outputs, targets: [(batch["y"], target) for batch, target in zip(outputs, targets, strict=True)],
        score=lambda pairs: float(sum(outputs.sum() for outputs, _ in pairs)),
        sample_scores=lambda pairs: np.concatenate([outputs for outputs, _ in pairs]),
        sample_statistics=lambda pairs: None,
        score_direction="higher",
        score_wish=None,
    )

    def on(device: str, computes: float = 0.0, **facts):
        info = DeviceInfo(uri="local:", kind="measured", id=device)
        build = a_stub_build(data=data, ledger=ledger, workspace=workspace, facts={"device": info, **facts})
        build.computes = computes
        return CountingEvaluator(build, "baseline")

    yield on
    ledger.close()


def test_the_scores_of_two_devices_are_not_mixed(on):
    assert on("here", 0.75).score("file").value == 0.75
    assert on("phone", 0.25).score("file").value == 0.25
    for device, value in {"here": 0.75, "phone": 0.25}.items():
        again = on(device)
        assert again.score("file").value == value
        assert again.evaluate("file", again.build.data.eval_file, [0])[0] == value
        assert again.ran == ()


ON_GPU = msgspec.structs.replace(a_profile().runtime, providers=("GPU", "CPU"))


@pytest.mark.parametrize("other", [{"device_onnxruntime": "1.3"}, {"runtime": ON_GPU}, {"task": "other data"}])
def test_with_another_runtime_provider_or_task_scores_are_computed_again(on, other):
    on("here", 0.75).score("file")
    again = on("here", 0.5, **other)
    assert again.score("file").value == 0.5
    assert again.ran == ("file", "baseline")


def test_the_outputs_that_files_are_compared_with_are_computed_once_also_by_several_threads(on):
    here = on("here", 0.5)
    inputs = here.build.data.eval_file
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: here.reference(inputs), range(8)))
    assert here.ran == ("baseline",)
    assert [float(outputs[0].sum()) for outputs in found] == [0.5] * 8


def test_two_runs_of_one_file_at_a_time_write_two_files(on, monkeypatch):
    here = on("here")
    written = []
    monkeypatch.setattr(evaluator_module, "run_model", lambda model, inputs, out, target: written.append(out))
    Evaluator.outputs(here, "0" * 64, here.build.data.eval_file)
    Evaluator.outputs(here, "0" * 64, here.build.data.eval_file)
    assert len(set(written)) == 2


def middle(rows):
    """Return a score that is neither a mean of samples nor computed from sums over them."""
    return float(np.median(rows[:, 0]))


def test_a_score_of_rows_has_its_interval_from_draws_of_rows_and_has_to_be_the_score(on):
    here = on("here")
    rows = {"baseline": np.linspace(0.5, 0.9, 41)[:, None], "file": np.linspace(0.4, 0.9, 41)[:, None]}
    data = here.build.data
    data.counts, data.task, data.scores_rows, data.score_rows = [41], SimpleNamespace(spec="t"), True, middle
    data.pairs = lambda outputs, targets: rows[here.ran[-1]]
    data.score, data.sample_scores, data.sample_statistics = middle, lambda pairs: None, lambda pairs: pairs
    score = here.score("file")
    assert score.drop == pytest.approx(0.05)
    low, high = score.drop_ci95
    assert low < score.drop < high  # paired: both files' rows of the same samples are drawn
    assert high - low < 0.1
    rows["other"], data.score_rows = rows["file"], lambda rows: middle(rows) + 0.01
    with pytest.raises(TaskError, match=r"score_rows\(\) gives .* but score\(\) gives"):
        here.score("other")


def outputs_of(evaluator):
    folder = evaluator.build.workspace.folder("arrays")
    return [path.name for path in folder.iterdir() if path.name.startswith(("outputs-", "reference-"))]


def test_an_interval_by_resampling_runs_each_file_once(on):
    here = on("here", 0.5)
    here.build.data.sample_scores = lambda pairs: None
    here.baseline_outputs(here.build.data.eval_file)  # as the check of the score does
    for name in ("baseline", "one", "two"):
        here.score(name)
    assert here.ran == ("baseline", "one", "two")
    assert outputs_of(here) == ["reference-eval.npz"], "the baseline's, which every interval needs"


def test_the_baselines_outputs_are_removed_once_scores_of_samples_are_enough(on):
    here = on("here", 0.5)
    here.baseline_outputs(here.build.data.eval_file)
    here.score("baseline")
    here.score("file")
    assert here.ran == ("baseline", "file")
    assert outputs_of(here) == []
