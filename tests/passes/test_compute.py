"""Where trainings run, and in which precision: choices with the hardware replaced by stand-ins."""

import pytest
import torch
from torch import fx, nn

from edgeopt.errors import TaskError
from edgeopt.passes.distill import compute
from edgeopt.passes.distill.compute import (
    choose_device,
    choose_precision,
    is_out_of_memory,
    training_gpus,
    with_device,
)
from edgeopt.task import Training


@pytest.fixture
def gpus(monkeypatch):
    """Two CUDA devices that compute in bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(compute, "_computes", lambda device: True)
    return monkeypatch


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_without_a_gpu_everything_trains_on_the_processor_in_float32(no_gpu):
    assert choose_device("auto") == torch.device("cpu")
    assert choose_precision("auto", torch.device("cpu")) == "float32"
    assert training_gpus(Training()) == []


def test_processes_share_out_the_gpus(gpus):
    assert [str(choose_device(name, worker)) for name in ("auto", "cuda") for worker in (0, 1, 2)] == [
        "cuda:0", "cuda:1", "cuda:0",
    ] * 2  # fmt: skip
    assert str(choose_device("cuda:1", 0)) == "cuda:1"
    assert training_gpus(Training()) == ["cuda:0 (GPU 0)", "cuda:1 (GPU 1)"]
    assert training_gpus(Training(device="cuda:1")) == ["cuda:1 (GPU 1)"]
    assert training_gpus(Training(device="cpu")) == []


def test_a_gpu_that_is_listed_and_does_not_compute_is_not_taken_by_auto(gpus):
    gpus.setattr(compute, "_computes", lambda device: False)
    gpus.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


def test_a_gpu_multiplies_in_bfloat16_and_an_older_one_in_float16(gpus):
    cuda = torch.device("cuda", 0)
    assert choose_precision("auto", cuda) == "bfloat16"
    gpus.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert choose_precision("auto", cuda) == "float16"
    assert choose_precision("float32", cuda) == "float32"


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (Training(device="gpu"), "training.device is 'gpu'; write 'auto', 'cpu', 'cuda'"),
        (Training(device="cuda"), "torch .* sees 0 CUDA devices here"),
        (Training(device="cuda:3"), "training.device is 'cuda:3'"),
        (Training(device="mps"), "no Apple GPU"),
        (Training(precision="float16"), "trains on CUDA devices only"),
        (Training(precision="int8"), "training.precision is 'int8'; write 'auto'"),
    ],
)
def test_a_device_or_a_precision_that_cannot_be_had_is_refused_with_the_next_step(no_gpu, training, message):
    with pytest.raises(TaskError, match=message):
        training_gpus(training)


def test_a_traced_network_makes_its_constants_where_it_runs():
    graph = fx.Graph()
    made = graph.call_function(torch.ops.aten.arange.default, (3,), {"device": torch.device("cpu")})
    graph.output((made,))
    module = fx.GraphModule(nn.Module(), graph)
    assert with_device(module, torch.device("meta"))()[0].device.type == "meta"
    assert with_device(module, torch.device("cpu")) is module


def test_an_error_for_lack_of_memory_is_told_from_others():
    wrapped = RuntimeError("the user's loss failed")
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert is_out_of_memory(wrapped)
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
