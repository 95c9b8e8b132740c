"""A teacher given as ``.onnx``: it teaches as its module would, and errors in it are reported before any training."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import tiny_task
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file
from torch import nn

import edgeopt
from edgeopt.errors import TaskError
from edgeopt.export.to_onnx import export
from edgeopt.passes.distill.teacher import TeacherOutputs, checksum
from edgeopt.pipeline.onnx_teacher import OnnxTeacher, check_teacher
from edgeopt.pipeline.task_data import TaskData
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.pool import TorchPool
from edgeopt.records.recipe import Distill
from edgeopt.store.workspace import Workspace
from edgeopt.task import CheckedTask

TESTS = Path(__file__).parent.parent


def a_file(path, module=None, **names):
    """Export a teacher: a network that is not the task's."""
    if module is None:
        torch.manual_seed(7)
        module = tiny_task.TinyNet(24)
    names = {"input_names": ("image",), "output_names": ("logits",)} | names
    inputs = (torch.randn(4, 1, 8, 8),) * len(names["input_names"])
    export(module.eval(), inputs, path, max_opset=17, max_ir=9, exporter="torchscript", **names)
    return module


def a_task(teacher, train=lambda seed: tiny_task.batches(128, seed), **members):
    torch.manual_seed(1)
    task = edgeopt.classification(tiny_task.TinyNet(8), train, tiny_task.batches(64, 1000), teacher=teacher)
    for name, value in members.items():
        setattr(task, name, value)
    return CheckedTask(task, "tests")


def set_up(task, folder):
    """Prepare the task as a build does, and return its fingerprint."""
    with Workspace(folder / "workspace").open() as workspace:
        data = TaskData(task, workspace)
        check_teacher(task, workspace.folder("teacher"))
        return data.fingerprint


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A teacher's file and the module that it was exported from."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.onnx"
    return path, a_file(path)


@pytest.mark.parametrize("chunk_bytes", [20_000, OnnxTeacher.chunk_bytes])
def test_a_file_teaches_the_same_as_its_module_in_chunks_of_any_size(made, tmp_path, monkeypatch, chunk_bytes):
    path, module = made
    monkeypatch.setattr(OnnxTeacher, "chunk_bytes", chunk_bytes)
    task = a_task(path)
    check_teacher(task, tmp_path)
    from_file = TeacherOutputs(tmp_path / "file", task, OnnxTeacher(task, tmp_path / "file"), epochs=1, seed=0)
    from_module = TeacherOutputs(tmp_path / "module", task, module, epochs=1, seed=0)
    pairs = list(zip(from_file.batches(0), from_module.batches(0), strict=True))
    for found, right in pairs:
        assert torch.equal(found.inputs[0], right.inputs[0])
        assert torch.equal(found.targets, right.targets)
        torch.testing.assert_close(found.teacher_outputs, right.teacher_outputs, rtol=1e-4, atol=1e-5)
    assert len(pairs) == from_file.prepare(0) == 4
    assert not list(tmp_path.rglob("chunk-*"))


def test_the_file_runs_once_per_epoch_for_all_students(made, tmp_path, monkeypatch):
    runs = []
    run = OnnxTeacher.run
    monkeypatch.setattr(OnnxTeacher, "run", lambda self, batches: runs.append(len(batches)) or run(self, batches))
    for _ in range(2):
        task = a_task(made[0])
        list(TeacherOutputs(tmp_path, task, OnnxTeacher(task, tmp_path), epochs=1, seed=0).batches(0))
    assert runs == [1, 4]  # the first batch tells how much an epoch's outputs take


def test_a_loader_that_ignores_its_seed_gets_the_right_outputs_from_a_file_too(made, tmp_path):
    path, module = made
    state = itertools.count()
    task = a_task(path, lambda seed: tiny_task.batches(64, next(state)))
    batches = list(TeacherOutputs(tmp_path, task, OnnxTeacher(task, tmp_path), epochs=1, seed=0).batches(0))
    assert len(batches) == 2
    for inputs, _, outputs, _ in batches:
        with torch.no_grad():
            torch.testing.assert_close(outputs[0], module(*inputs), rtol=1e-4, atol=1e-5)


class Difference(nn.Module):
    """A module whose two inputs and two outputs are not interchangeable."""

    def forward(self, first, second):
        return first - 2 * second, first + 1


def test_inputs_and_outputs_of_the_same_names_are_matched_by_name(tmp_path):
    class Swapped(nn.Module):
        def forward(self, second, first):
            return tuple(reversed(Difference()(first, second)))

    a_file(tmp_path / "t.onnx", Swapped(), input_names=("second", "first"), output_names=("sum", "difference"))
    pair = (torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8))
    task = a_task(tmp_path / "t.onnx", input_names=("first", "second"), output_names=("difference", "sum"),
                  build_model=Difference, example_inputs=lambda: pair)  # fmt: skip
    check_teacher(task, tmp_path)
    (found,) = OnnxTeacher(task, tmp_path).run([pair])
    torch.testing.assert_close(found, Difference()(*pair))


def not_a_model(path):
    path.write_bytes(b"no model")


def with_a_fixed_batch(path):
    a_file(path)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)


def with_a_future_operator_set(path):
    a_file(path)
    model = onnx.load(path)
    model.opset_import[0].version = 99
    onnx.save(model, path)


def without_weights(path):
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1], b"\0\0\0\0", raw=True)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weights])
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()


def of_other_images(path):
    class Wide(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 16, 16).mean(2)

    export(Wide(), (torch.randn(4, 1, 16, 16),), path, input_names=("x",), output_names=("y",), max_opset=17, max_ir=9,
           exporter="torchscript")  # fmt: skip


WRONG = {
    "missing": (lambda path: None, r"teacher .*t\.onnx does not exist"),
    "not a model": (not_a_model, r"t\.onnx cannot be read as an ONNX model"),
    "missing weights": (without_weights, r"keeps weights in .*weights\.bin, which does not exist"),
    "a fixed batch": (with_a_fixed_batch, r"fixed batch of 1 \(input 'image'\)"),
    "another number of outputs": (
        lambda path: a_file(path, Difference(), input_names=("a", "b"), output_names=("c", "d")),
        r"has 2 inputs \(a, b\), but the model has 1 \(input\)",
    ),
    "other classes": (
        lambda path: a_file(path, nn.Sequential(nn.Flatten(), nn.Linear(64, 5))),
        r"outputs of shape \(8, 5\) \(float32\), but the model returns shape \(8, 4\) \(float32\)",
    ),
    "another input size": (of_other_images, r"does not run on example_inputs\(\) of shape \(8, 1, 8, 8\).*16"),
    "an unsupported operator set": (with_a_future_operator_set, r"does not run .*pset 99.*onnxruntime supports"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_unusable_teacher_is_reported_with_the_reason(case, tmp_path):
    make, words = WRONG[case]
    path = tmp_path / "t.onnx"
    make(path)
    task = a_task(path)
    with pytest.raises(TaskError, match=words):
        set_up(task, tmp_path)


@pytest.mark.parametrize("teacher", ["teacher.pt", nn.Identity()])
def test_a_teacher_that_is_not_the_path_of_an_onnx_file_is_refused(teacher):
    with pytest.raises(TaskError, match=r"teacher has to be the path of an \.onnx file, not .*Export"):
        a_task(teacher)


def test_the_fingerprint_depends_on_the_bytes_of_the_teacher_and_of_its_external_weights(tmp_path):
    path, weights = tmp_path / "t.onnx", tmp_path / "weights.bin"

    def fingerprint(teacher):
        return set_up(a_task(teacher, tiny_task.batches(64, 3)), tmp_path)

    a_file(path)
    found = [fingerprint(None), fingerprint(path)]
    assert fingerprint(path) == found[1]
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=weights.name, size_threshold=0)
    found.append(fingerprint(path))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    found.append(fingerprint(path))
    assert len(set(found)) == 4


TAUGHT = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import edgeopt, tiny_task
task = edgeopt.classification(tiny_task.trained, lambda seed: tiny_task.batches(128, seed),
    tiny_task.batches(256, 1000), teacher="teacher.onnx", training=edgeopt.Training(epochs=1, min_steps=0))
"""


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """The current folder, with a task and its teacher."""
    (tmp_path / "taught.py").write_text(TAUGHT)
    shutil.copy(made[0], tmp_path / "teacher.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_taught_by(module, outputs_file, folder):
    """Check that a file of teacher outputs holds those of ``module``, for the same batches of the stream."""
    stored = load_file(outputs_file)
    task = a_task(None)
    batches = list(TeacherOutputs(folder / "again", task, module, epochs=1, seed=0).batches(0))
    assert len(batches) == 4
    for index, (inputs, _, outputs, _) in enumerate(batches):
        assert torch.equal(stored[f"{index}/checksum"], checksum(inputs))
        torch.testing.assert_close(stored[f"{index}/0"], outputs[0], rtol=1e-4, atol=1e-5)


def test_a_torch_worker_trains_with_the_outputs_of_the_file(made, project):
    step = Distill(epochs=1, optimizer="sgd", learning_rate=0.01, weight_decay=0.0, warmup_ratio=0.1, temperature=4.0,
                   kl_weight=0.9, mse_weight=0.0, hard_weight=0.1)  # fmt: skip
    job = protocol.TrainJob(
        parent=protocol.NetworkRef(source="original", file=None), table=None, steps=(step,), seed=0,
        checkpoint=str(project / "checkpoint.safetensors"), teacher=str(project / "kept"),
        out=str(project / "network.safetensors"),
    )  # fmt: skip
    pool = TorchPool("taught.py:task", 1)
    try:
        done = pool.do(job, protocol.TrainDone)
    finally:
        pool.close()
    assert done.best_epoch == 0
    assert_taught_by(made[1], project / "kept" / "seed0-epoch0.safetensors", project)


@pytest.mark.slow
def test_a_build_learns_from_a_file_and_still_compresses_the_model(made, project):
    done = subprocess.run(
        [sys.executable, "-m", "edgeopt", "build", "taught.py:task", "--target", "phone", "--quick", "--workers", "1",
         "--max-drop", "0.99", "--latency-ms", "1000"],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (outputs_file,) = (project / ".edgeopt" / "teacher").glob("*/seed0-epoch0.safetensors")
    assert_taught_by(made[1], outputs_file, project)
    assert (project / "edgeopt-out" / "model.onnx").stat().st_size < made[0].stat().st_size
