"""Where a training runs, and in which precision it multiplies.

In: ``Training.device`` and ``Training.precision``. Out: a ``ComputeDevice``, and modules moved there. Parameters and
everything that is saved stay in float32; only products run in half precision (automatic mixed precision).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from edgeopt.errors import TaskError
from edgeopt.records.recipe import MultiplyPrecision
from edgeopt.task import Training

A = TypeVar("A")

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


class ComputeDevice(NamedTuple):
    """A device of PyTorch, and the precision of products there."""

    device: torch.device
    precision: MultiplyPrecision = "float32"

    @property
    def is_cpu(self) -> bool:
        """Whether this is the processor itself."""
        return self.device.type == "cpu"

    def autocast(self) -> torch.autocast:
        """Return a context in which products run in the precision."""
        dtype = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.precision]
        return torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def make_scaler(self) -> torch.amp.GradScaler:
        """Return what keeps small gradients from vanishing in float16; it does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")

    def put(self, value: Any) -> Any:
        """Return a nesting with its tensors on the device; to a GPU from pinned memory, without waiting."""
        if self.is_cpu:
            return value
        return pytree.tree_map(self._put_leaf, value)

    def _put_leaf(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf.to(self.device) if callable(getattr(leaf, "to", None)) else leaf
        if self.device.type == "cuda" and leaf.device.type == "cpu":
            return leaf.pin_memory().to(self.device, non_blocking=True)
        return leaf.to(self.device)

    def __str__(self) -> str:
        return f"{self.device} in {self.precision}"


CPU = ComputeDevice(torch.device("cpu"))


def check_device_name(name: str) -> None:
    """Check how ``Training.device`` is written, and that this machine has the device.

    Raises:
        TaskError: it has another form, or there is no such device.
    """
    if not isinstance(name, str) or not _DEVICE.fullmatch(name):
        raise TaskError(f"training.device is {name!r}; write 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(name.partition(":")[2] or 0)
        if index >= count:
            raise TaskError(
                f"training.device is '{name}', but torch {torch.__version__} sees {count} CUDA devices here. Install a "
                "build of torch for your CUDA version and check `nvidia-smi`, or use 'auto' or 'cpu'."
            )
    if name == "mps" and not torch.backends.mps.is_available():
        raise TaskError(
            f"training.device is 'mps', but torch {torch.__version__} sees no Apple GPU here. Use 'auto' or 'cpu'."
        )


def training_gpus(training: Training) -> list[str]:
    """Return the GPUs that a task's trainings share out, in words; an empty list if they run on the processor.

    Raises:
        TaskError: ``Training.device`` or ``Training.precision`` cannot be had on this machine.
    """
    name, cuda = training.device, torch.cuda.is_available()
    check_device_name(name)
    if training.processes < 1:
        raise TaskError(f"training.processes is {training.processes}; it has to be 1 or more.")
    if name in ("auto", "mps") and not cuda and torch.backends.mps.is_available():
        choose_precision(training.precision, torch.device("mps"))
        _check_processes(training.processes, ["mps"])
        return ["mps"]
    if not cuda or name == "cpu":
        choose_precision(training.precision, CPU.device)
        return []
    choose_precision(training.precision, torch.device("cuda"))
    chosen = [int(name.partition(":")[2])] if ":" in name else range(torch.cuda.device_count())
    gpus = [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in chosen]
    _check_processes(training.processes, gpus)
    return gpus


def _check_processes(count: int, gpus: Sequence[str]) -> None:
    if count > len(gpus):
        raise TaskError(
            f"training.processes is {count}, and each needs a GPU of its own, but this machine and training.device "
            f"give {', '.join(gpus)}. Set processes to at most {len(gpus)}, or device='cpu'."
        )


def choose_device(name: str, worker: int = 0) -> torch.device:
    """Return the device of a training.

    Args:
        name: ``auto`` is a CUDA device if one computes, then an Apple GPU, then the processor. ``cuda`` without a
            number shares out all CUDA devices among the torch processes.
        worker: Number of this torch process.

    Raises:
        TaskError: the device is not there.
    """
    check_device_name(name)
    if name in ("auto", "cuda") and torch.cuda.is_available() and torch.cuda.device_count():
        device = torch.device("cuda", worker % torch.cuda.device_count())
        if name == "cuda" or _computes(device):
            return device
    if name == "auto":
        mps = torch.device("mps")
        return mps if torch.backends.mps.is_available() and _computes(mps) else CPU.device
    return torch.device(name)


def _computes(device: torch.device) -> bool:
    """Tell whether a device computes: an old GPU or driver may be listed and then lack the kernels."""
    try:
        return float((torch.ones(2, device=device) * 2).sum()) == 4.0
    except RuntimeError:
        return False


def choose_precision(name: str, device: torch.device) -> MultiplyPrecision:
    """Return the precision of products in a training on ``device``.

    ``auto`` is bfloat16 on GPUs that multiply it and float16 on older ones; on a processor and on an Apple GPU float32.

    Raises:
        TaskError: the name is unknown, or the device lacks the precision.
    """
    match name:
        case "float32":
            return "float32"
        case "auto":
            if device.type != "cuda":
                return "float32"
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        case "bfloat16":
            return "bfloat16"
        case "float16" if device.type == "cuda":
            return "float16"
    if name == "float16":
        raise TaskError(f"training.precision is 'float16', which trains on CUDA devices only, not on {device.type}.")
    raise TaskError(f"training.precision is {name!r}; write 'auto', 'float32', 'bfloat16' or 'float16'.")


def processor_multiplies_bfloat16() -> bool:
    """Tell whether this machine's processor has instructions that multiply bfloat16 (AVX-512 BF16 or AMX)."""
    try:
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    except (AttributeError, RuntimeError):  # another version of PyTorch, or another kind of processor
        return False


def move_tensors(module: nn.Module, device: torch.device) -> None:
    """Move a module's tensors in place: modules that share them move too."""
    for value in (*module.parameters(), *module.buffers()):
        if value.device != device:
            value.data = value.data.to(device)


def with_device(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a traced module, over the same tensors, that makes its constants on ``device``; else the module itself."""
    if device.type == "cpu" or not isinstance(module, fx.GraphModule):
        return module
    graph = copy.deepcopy(module.graph)
    for node in graph.nodes:
        node.args = tuple(device if isinstance(value, torch.device) else value for value in node.args)
        node.kwargs = {
            name: device if isinstance(value, torch.device) else value for name, value in node.kwargs.items()
        }
    return fx.GraphModule(module, graph)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error, or its cause, is that memory ran out: a GPU's, or the machine's."""
    if error is None:
        return False
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    found = isinstance(error, RuntimeError) and any(message in text for message in _OUT_OF_MEMORY)
    return found or is_out_of_memory(error.__cause__)


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
"""Of CUDA and MPS, of PyTorch's allocator for processors, of cuDNN and of cuBLAS."""


def one_ahead(items: Iterable[A]) -> Iterator[A]:
    """Yield items one later than they are made, so that the next batch travels to the GPU while one is computed."""
    iterator = iter(items)
    current = next(iterator, None)
    while current is not None:
        following = next(iterator, None)
        yield current
        current = following
