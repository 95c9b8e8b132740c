"""A network that magnifies rounding: its own error widens how far an export and a conversion may be off."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx_running import run_all
from stub_builds import a_stub_build
from tiny_models import a_network

from edgeopt.bench.outputs import read_batches, write_batches
from edgeopt.device.local import LocalDevice
from edgeopt.errors import StepError
from edgeopt.pipeline.artifacts.given_training import check_trainable
from edgeopt.pipeline.artifacts.networks import export_network, original_network
from edgeopt.store.ledger import Ledger
from edgeopt.store.workspace import Workspace

INPUTS = {"x": np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)}


class StandInPool:
    """Exports a file whose outputs are 0.4 % of the largest value off what it says are the network's own."""

    def __init__(self, model, rounding):
        self.model, self.rounding = model, rounding

    def do(self, job, kind):
        shutil.copy(self.model, job.out)
        batches = read_batches(Path(job.examples))
        outputs = [run_all(self.model, batch["x"]) for batch in batches]
        for batch in outputs:
            for values in batch.values():
                values.flat[np.abs(values).argmax()] *= 1.004
        write_batches(Path(job.inputs), batches)
        write_batches(Path(job.expected), outputs)
        return kind(
            exporter="dynamo", edge_inputs=(), rounding=self.rounding, parameters=10, merged_sums=0, notes=(),
            seconds=0.1,
        )  # fmt: skip


@pytest.fixture
def make_build(tmp_path):
    """Return a function that makes a build whose torch process exports a network with that error of rounding."""
    model = tmp_path / "m.onnx"
    a_network(model)
    (name,) = run_all(model, INPUTS["x"])
    workspace = Workspace(tmp_path)
    for folder in ("stages", "arrays", "artifacts"):
        workspace.folder(folder).mkdir(exist_ok=True)
    write_batches(tmp_path / "parity.npz", [INPUTS])
    ledger = Ledger(tmp_path / "ledger.sqlite")
    task = SimpleNamespace(
        output_names=(name,), training=object(), sha256="m", row_check_batches=lambda: [INPUTS], model=model,
        given=SimpleNamespace(model=onnx.load(model)),
    )  # fmt: skip

    def make(ratio):
        return a_stub_build(
            device=LocalDevice(), ledger=ledger, workspace=workspace,
            data=SimpleNamespace(task=task, parity_file=tmp_path / "parity.npz"),
            torch_pool=StandInPool(model, {name: ratio}),
        )  # fmt: skip

    yield make
    ledger.close()


def test_an_export_may_differ_by_ten_times_the_networks_own_rounding(make_build):
    with pytest.raises(StepError, match=r"off by 0\.004 of its largest value; 0\.001 is allowed"):
        export_network(make_build(1e-6), original_network("original", 10))
    exported = export_network(make_build(1e-3), original_network("original", 10))
    assert exported.parities[0].tolerance == pytest.approx(0.01)
    assert list(exported.rounding.values()) == [1e-3]


def test_a_converted_file_may_differ_by_as_much(make_build):
    build = make_build(1e-6)
    task = build.data.task
    assert "off by 0.004" in check_trainable(build, task, task.model).reason
    assert check_trainable(make_build(1e-3), task, task.model).parameters == 10
