"""Parallel branches in a build: the baseline has them, everything else starts without."""

from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_torch_pool import A_DISTILLATION

from edgeopt.bench.outputs import read_batches, write_batches
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.pool import TorchPool
from edgeopt.records.recipe import Student

TASK = f"{Path(__file__).parent.parent / 'branches_task.py'}:task"


@pytest.fixture(scope="module")
def pool():
    with closing(TorchPool(TASK, 1)) as pool:
        yield pool


def export(pool, folder, network):
    inputs = folder / "inputs.npz"
    write_batches(inputs, [{"input": np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)}])
    job = protocol.ExportJob(
        network=network, exporter="dynamo", examples=str(inputs), inputs=str(folder / "compared.npz"),
        expected=str(folder / "expected.npz"),
        out=str(folder / "model.onnx"), max_opset=18, max_ir=9,
    )  # fmt: skip
    done = pool.do(job, protocol.ExportDone)
    nodes = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    return done, nodes, read_batches(folder / "expected.npz")[0]["output"]


def test_the_original_is_exported_without_branches_and_the_baseline_with_them(pool, tmp_path):
    original, merged_nodes, merged = export(pool, tmp_path, protocol.NetworkRef(source="original", file=None))
    baseline, nodes, expected = export(pool, tmp_path, protocol.NetworkRef(source=protocol.AS_TRAINED, file=None))
    assert (original.merged_sums, baseline.merged_sums) == (2, 0)
    assert merged_nodes.count("Conv") == 3
    assert "Add" not in merged_nodes
    assert nodes.count("Conv") == 5
    assert original.parameters < baseline.parameters
    assert "2 sums of parallel branches became one convolution each" in original.notes[0]
    np.testing.assert_allclose(merged, expected, atol=1e-5)


def test_a_student_trains_with_its_branches_which_are_merged_after_it(pool, tmp_path):
    job = protocol.TrainJob(
        parent=protocol.NetworkRef(source="original", file=None), table=None,
        steps=(Student(name="narrow"), A_DISTILLATION), seed=0, checkpoint=str(tmp_path / "checkpoint.safetensors"),
        teacher=str(tmp_path / "teacher"), out=str(tmp_path / "student.safetensors"),
    )  # fmt: skip
    trained = pool.do(job, protocol.TrainDone)
    student = protocol.NetworkRef(source="narrow", file=str(tmp_path / "student.safetensors"))
    exported, nodes, _ = export(pool, tmp_path, student)
    assert exported.merged_sums == 2
    assert exported.parameters == trained.parameters
    assert nodes.count("Conv") == 3
