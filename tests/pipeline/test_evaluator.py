"""What a build looks up in its ledger is this device's own."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgeopt.bench.outputs import write_batches
from edgeopt.pipeline.artifacts.evaluator import Evaluator
from edgeopt.store.ledger import Ledger
from edgeopt.store.workspace import Workspace


class CountingScale(Evaluator):
    """Its device gives one number for every file; what ran there is noted."""

    ran: tuple[str, ...] = ()

    def outputs(self, sha256: str, inputs: Path) -> Path:
        self.ran += (sha256,)
        target = self.build.workspace.folder("arrays") / "outputs.npz"
        write_batches(target, [{"y": np.array([self.build.computes])}])
        return target


@pytest.fixture
def on(tmp_path):
    """Return what weighs files on a named device, in the workspace that all of them share."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    workspace = Workspace(tmp_path)
    workspace.folder("arrays").mkdir(parents=True)
    data = SimpleNamespace(
        eval_file=tmp_path / "eval.npz",
        samples=1,
        targets=[0],
        pairs=lambda outputs, targets: [float(batch["y"].sum()) for batch in outputs],
        score=sum,
        sample_scores=lambda pairs: None,
    )

    def on(device: str, computes: float = 0.0, *, onnxruntime: str = "1.2", providers: tuple[str, ...] = ("CPU",)):
        return CountingScale(
            SimpleNamespace(
                data=data,
                ledger=ledger,
                workspace=workspace,
                fingerprint="task",
                device=SimpleNamespace(id=device),
                environment=SimpleNamespace(onnxruntime=onnxruntime),
                profile=SimpleNamespace(providers=providers),
                computes=computes,
            ),
            "baseline",
        )

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


@pytest.mark.parametrize("other", [{"onnxruntime": "1.3"}, {"providers": ("GPU", "CPU")}])
def test_another_runtime_or_provider_scores_anew(on, other):
    on("here", 0.75).score("file")
    again = on("here", 0.5, **other)
    assert again.score("file").value == 0.5
    assert again.ran == ("file", "baseline")
