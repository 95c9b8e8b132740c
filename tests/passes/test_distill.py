import copy
import itertools
import time

import msgspec
import numpy as np
import pytest
import tiny_task
import torch

from edgeopt.errors import DivergedError
from edgeopt.passes.distill import teacher as teacher_module
from edgeopt.passes.distill.compute import ComputeDevice
from edgeopt.passes.distill.epoch_choice import evaluate
from edgeopt.passes.distill.gradients import GradientStep
from edgeopt.passes.distill.losses import soft_loss
from edgeopt.passes.distill.optimizer import learning_rate
from edgeopt.passes.distill.parts import TaughtBatch
from edgeopt.passes.distill.teacher import CachePlan, ModuleTeacher, TeacherOutputs, checksum
from edgeopt.passes.distill.train import Distillation
from edgeopt.passes.sparsify import SparsitySchedule
from edgeopt.records.recipe import Distill, Sparsify
from edgeopt.task import CheckedTask
from edgeopt.task.batch_axes import BatchAxes
from edgeopt.tasks.classification import Classification

STEP = Distill(
    epochs=3,
    optimizer="sgd",
    learning_rate=0.05,
    weight_decay=5e-4,
    warmup_ratio=0.1,
    temperature=4.0,
    kl_weight=0.9,
    mse_weight=0.1,
    hard_weight=0.1,
)


@pytest.fixture(scope="module")
def task():
    torch.set_num_threads(1)
    return CheckedTask(tiny_task.task(), "tests/tiny_task.py:task")


def student():
    """Return a small network as a train and an eval module that share their tensors."""
    torch.manual_seed(1)
    training = tiny_task.TinyNet(8).train()
    shared = {id(value): value for value in itertools.chain(training.parameters(), training.buffers())}
    return training, copy.deepcopy(training, shared).eval()


def a_training(task, folder, step=STEP, *, sparsity=None, progress=lambda *_: None, modules=None, **options):
    training, evaluating = modules or student()
    stream = TeacherOutputs(folder / "teacher", task, task.model, epochs=step.epochs, seed=0)
    return Distillation(
        training,
        evaluating,
        task,
        step,
        stream,
        sparsity=sparsity,
        checkpoint=folder / "checkpoint.safetensors",
        progress=progress,
        **options,
    )


def test_a_student_learns_from_its_teacher_and_keeps_its_last_epoch_unless_another_is_clearly_better(task, tmp_path):
    training = a_training(task, tmp_path)
    result = training.run()
    scores = [epoch.score for epoch in result.epochs]
    assert len(scores) == STEP.epochs
    assert result.best_score == scores[result.best_epoch] > 0.5  # chance is a quarter
    assert evaluate(training.eval_module, task) == result.best_score


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_interrupted_training_ends_with_the_same_weights(task, tmp_path, optimizer):
    step = with_changes(STEP, optimizer=optimizer)
    uninterrupted = a_training(task, tmp_path / "uninterrupted", step)
    (tmp_path / "uninterrupted").mkdir(exist_ok=True)
    uninterrupted.run()

    def interrupt(epoch, epochs, score):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        a_training(task, tmp_path, step, progress=interrupt).run()
    resumed = a_training(task, tmp_path, step)
    seen = []
    resumed.progress = lambda epoch, epochs, score: seen.append(epoch)
    resumed.run()
    assert seen == [2]
    for name, value in uninterrupted.train_module.state_dict().items():
        assert torch.equal(value, resumed.train_module.state_dict()[name]), name


def test_a_broken_checkpoint_restarts_the_training(task, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half a file")
    assert len(a_training(task, tmp_path).run().epochs) == STEP.epochs


def test_a_loss_that_is_not_finite_ends_the_training(task, tmp_path):
    training, evaluating = student()
    with torch.no_grad():
        training.head.weight.fill_(float("inf"))
    with pytest.raises(DivergedError, match=r"the loss became (nan|inf) in epoch 1, step 1"):
        a_training(task, tmp_path, modules=(training, evaluating)).run()


def a_sparsity(task, schedule, method="magnitude"):
    step = Sparsify(method=method, ratio=0.5, scope="layer", schedule=schedule)
    batches = [((x,), labels) for x, labels in tiny_task.batches(64, 0)]
    return SparsitySchedule(step, batches, task.loss, STEP.epochs)


@pytest.mark.parametrize(
    ("schedule", "method", "ema"),
    [("once", "magnitude", 0.0), ("cubic", "magnitude", 0.9), ("once", "taylor", 0.9), ("cubic", "taylor", 0.0)],
)
def test_zeros_stay_zero_through_a_training(task, tmp_path, schedule, method, ema):
    training, evaluating = student()
    ratios = []

    def record_ratio(epoch, epochs, score):
        ratios.append(float((training.body[0].weight == 0).float().mean()))

    sparsity = a_sparsity(task, schedule, method)
    step = msgspec.structs.replace(STEP, ema=ema)
    result = a_training(
        task, tmp_path, step=step, sparsity=sparsity, modules=(training, evaluating), progress=record_ratio
    ).run()
    assert ratios == pytest.approx([sparsity.ratio(epoch) for epoch in range(3)], abs=0.01)
    assert ratios == sorted(ratios)
    assert sparsity.is_full(result.best_epoch)
    for parameter in training.parameters():
        if parameter.dim() > 1:
            assert int((parameter == 0).sum()) == round(0.5 * parameter.numel())


def test_a_training_with_growing_sparsity_resumes_with_the_same_zeros(task, tmp_path):
    uninterrupted = a_training(task, tmp_path / "uninterrupted", sparsity=a_sparsity(task, "cubic"))
    (tmp_path / "uninterrupted").mkdir(exist_ok=True)
    uninterrupted.run()

    def interrupt(epoch, epochs, score):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            a_training(task, tmp_path, sparsity=a_sparsity(task, "cubic"), progress=interrupt).run()
    resumed = a_training(task, tmp_path, sparsity=a_sparsity(task, "cubic"))
    resumed.run()
    for name, value in uninterrupted.train_module.state_dict().items():
        assert torch.equal(value, resumed.train_module.state_dict()[name]), name


class CountingTeacher:
    """A teacher that counts its batches."""

    def __init__(self, model):
        self.model = model
        self.batches = 0

    def __call__(self, *inputs):
        self.batches += 1
        return self.model(*inputs)


def test_the_teacher_runs_once_for_all_students(task, tmp_path):
    teacher = CountingTeacher(task.model)
    for _ in range(2):
        stream = TeacherOutputs(tmp_path, task, teacher, epochs=1, seed=0)
        batches = list(stream.batches(0))
    assert teacher.batches == len(batches) + 1 == 9  # one to see how large its outputs are
    inputs, _, outputs, _ = batches[3]
    assert torch.equal(outputs[0], task.model(*inputs))


def test_a_loader_that_ignores_its_seed_still_gets_the_right_teacher_outputs(tmp_path):
    state = itertools.count()

    class Unseeded(Classification):
        def train_batches(self, seed):
            return tiny_task.batches(64, next(state))

    plain = tiny_task.task()
    plain.__class__ = Unseeded
    task = CheckedTask(plain, "tests")
    stream = TeacherOutputs(tmp_path, task, task.model, epochs=1, seed=0)
    for inputs, _, outputs, _ in stream.batches(0):
        assert torch.equal(outputs[0], task.model(*inputs))


def test_a_loader_that_shuffles_one_batch_still_gets_the_right_teacher_outputs(tmp_path):
    """The same samples in another order, as a loader of the whole set gives them: their sum does not change."""
    ((inputs, labels),) = list(tiny_task.batches(32, 0))
    shuffled = torch.Generator().manual_seed(0)

    def one_batch(seed):
        order = torch.randperm(len(labels), generator=shuffled)
        return [(inputs[order], labels[order])]

    plain = tiny_task.task()
    plain._train = one_batch
    task = CheckedTask(plain, "tests")
    stream = TeacherOutputs(tmp_path, task, task.model, epochs=1, seed=0)
    for given, _, outputs, _ in stream.batches(0):
        assert torch.equal(outputs[0], task.model(*given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_checksum_tells_order_shape_and_type_apart(dtype):
    value = torch.tensor([[0, 1, 1], [1, 0, 0]]).to(dtype)
    found = [checksum((value,)), checksum((value.flip(0),)), checksum((value.T,)), checksum((value.reshape(3, 2),)),
             checksum((value[0], value[1])), checksum((value.to(torch.float64),))]  # fmt: skip
    assert len({one.item() for one in found}) == len(found)
    assert torch.equal(checksum((value.T.contiguous(),)), found[2]), "the layout in memory does not count"
    assert checksum((torch.tensor(1).to(dtype),)).shape == checksum((value,)).shape


def test_outputs_that_are_too_large_are_never_computed_ahead(task, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_module, "free_memory", lambda: 0.0)
    teacher = CountingTeacher(task.model)
    stream = TeacherOutputs(tmp_path, task, teacher, epochs=2, seed=0)
    assert stream.prepare(0) == 8
    assert teacher.batches == 1, "the first batch decides"
    batches = list(stream.batches(0))
    assert teacher.batches == 9
    assert torch.equal(batches[3].teacher_outputs[0], task.model(*batches[3].inputs))
    assert not list(tmp_path.glob("*.safetensors"))
    again = TeacherOutputs(tmp_path, task, teacher, epochs=2, seed=0)
    monkeypatch.setattr(teacher_module, "free_memory", lambda: 1e12)
    assert again.plan == stream.plan, "one decision for all trainings"


def test_outputs_that_fit_only_in_float16_are_kept_so(task, tmp_path, monkeypatch):
    epoch_bytes = 256 * 4 * 4
    monkeypatch.setattr(teacher_module, "free_memory", lambda: 0.7 * epoch_bytes / teacher_module._MEMORY_RATIO)
    stream = TeacherOutputs(tmp_path, task, task.model, epochs=1, seed=0)
    assert stream.plan == CachePlan(batches=8, kept="float16")
    for inputs, _, (outputs,), _ in stream.batches(0):
        expected = task.model(*inputs)
        assert outputs.dtype == torch.float32
        assert (outputs - expected).abs().max() <= 1e-3 * expected.abs().max()
        assert not torch.equal(outputs, expected)


def test_a_loader_without_a_length_is_counted(tmp_path):
    plain = tiny_task.task()
    given = plain._train
    plain._train = lambda seed: iter(given(seed))
    task = CheckedTask(plain, "tests")
    assert task.train_length(0) is None
    assert TeacherOutputs(tmp_path, task, task.model, epochs=1, seed=0).prepare(0) == 8


def with_changes(step, **changes):
    return Distill(**{name: getattr(step, name) for name in step.__struct_fields__} | changes)


def test_averaged_weights_are_evaluated_kept_and_resumed(task, tmp_path):
    step = with_changes(STEP, ema=0.9)
    uninterrupted = a_training(task, tmp_path / "uninterrupted", step)
    (tmp_path / "uninterrupted").mkdir(exist_ok=True)
    result = uninterrupted.run()
    assert result.best_score > 0.5
    plain = a_training(task, tmp_path / "plain")
    (tmp_path / "plain").mkdir(exist_ok=True)
    plain.run()
    assert not torch.equal(plain.train_module.head.weight, uninterrupted.train_module.head.weight)

    def interrupt(epoch, epochs, score):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        a_training(task, tmp_path, step, progress=interrupt).run()
    resumed = a_training(task, tmp_path, step)
    resumed.run()
    for name, value in uninterrupted.train_module.state_dict().items():
        assert torch.equal(value, resumed.train_module.state_dict()[name]), name


def test_a_task_brings_its_own_training_step(tmp_path):
    class Own(Classification):
        calls = 0

        def training_step(self, model, inputs, targets, teacher_outputs):
            self.calls += 1
            share = 0.7  # mixup with the reversed batch
            outputs = model(share * inputs + (1 - share) * inputs.flip(0))
            return share * self.loss(outputs, targets) + (1 - share) * self.loss(outputs, targets.flip(0))

    plain = tiny_task.task()
    plain.__class__ = Own
    result = a_training(CheckedTask(plain, "tests"), tmp_path).run()
    assert plain.calls == 24
    assert result.best_score > 0.5


def test_a_careful_training_is_in_row_major_memory_and_learns_as_well(task, tmp_path):
    training, evaluating = student()
    stream = TeacherOutputs(tmp_path, task, task.model, epochs=STEP.epochs, seed=0)
    result = Distillation(
        training, evaluating, task, STEP, stream, sparsity=None, checkpoint=tmp_path / "checkpoint",
        progress=lambda *_: None, careful=True,
    ).run()  # fmt: skip
    assert result.best_score > 0.5
    assert all(value.is_contiguous() for value in training.parameters())


def test_bfloat16_products_train_as_well_and_leave_float32_weights(task, tmp_path):
    training, evaluating = student()
    stream = TeacherOutputs(tmp_path, task, task.model, epochs=STEP.epochs, seed=0)
    result = Distillation(
        training, evaluating, task, STEP, stream, sparsity=None, checkpoint=tmp_path / "checkpoint",
        progress=lambda *_: None, compute=ComputeDevice(torch.device("cpu"), "bfloat16"),
    ).run()  # fmt: skip
    assert result.best_score > 0.5
    assert {value.dtype for value in training.parameters()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_training_on_a_gpu_gives_the_same_score_within_noise_and_leaves_the_weights_on_the_cpu(
    task, tmp_path, precision
):
    cpu = a_training(task, tmp_path / "cpu").run()
    gpu = torch.device("cuda", 0)
    training, evaluating = student()
    teacher = copy.deepcopy(task.model).to(gpu)
    (tmp_path / "gpu").mkdir()
    stream = TeacherOutputs(
        tmp_path / "gpu", task, ModuleTeacher(teacher, ComputeDevice(gpu)), epochs=STEP.epochs, seed=0
    )
    result = Distillation(
        training, evaluating, task, STEP, stream, sparsity=None, checkpoint=tmp_path / "gpu" / "checkpoint",
        progress=lambda *_: None, compute=ComputeDevice(gpu, precision),
    ).run()  # fmt: skip
    assert result.best_score == pytest.approx(cpu.best_score, abs=0.1)  # 512 samples: a standard error of 0.02
    assert {value.device.type for value in training.state_dict().values()} == {"cpu"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_a_gpu_is_at_least_five_times_as_fast_as_on_one_core():
    layers = [torch.nn.Conv2d(64, 64, 3, padding=1) for _ in range(8)]
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), *layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    batch = TaughtBatch((torch.randn(32, 3, 64, 64),), torch.arange(32), (torch.randn(32, 64),))
    seconds = []
    for compute in (ComputeDevice(torch.device("cpu")), ComputeDevice(torch.device("cuda", 0), "bfloat16")):
        module.to(compute.device)
        step = GradientStep(
            module, compute, lambda outputs, _, targets: torch.nn.functional.cross_entropy(outputs, targets),
            axes=lambda: BatchAxes((0,), (0,)),
        )  # fmt: skip
        for count in (2, 5):  # the first steps warm up
            begin = time.perf_counter()
            for _ in range(count):
                float(step.run(compute.put(batch), None, lambda value: None))
        seconds.append(time.perf_counter() - begin)
    assert seconds[0] > 5 * seconds[1]


def test_the_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(STEP, progress) for progress in np.linspace(0, 1, 101)]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(STEP.learning_rate) == rates[10]
    assert rates[-1] == pytest.approx(0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_the_soft_loss_is_zero_for_equal_logits_and_its_gradient_does_not_shrink_with_temperature():
    torch.manual_seed(0)
    teacher = torch.randn(8, 10)
    assert float(soft_loss(teacher, teacher, 4.0)) == pytest.approx(0, abs=1e-6)
    norms = []
    for temperature in (1.0, 8.0):
        output = torch.zeros(8, 10, requires_grad=True)
        soft_loss(output, teacher, temperature).backward()
        norms.append(float(output.grad.norm()))
    assert 0.5 < norms[1] / norms[0] < 2
