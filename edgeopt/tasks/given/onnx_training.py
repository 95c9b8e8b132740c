"""The PyTorch task of a given ``.onnx`` file, for the processes that prune and train: it learns its own outputs.

In: a folder that ``edgeopt.tasks.given.onnx_trainable`` wrote. The file becomes a module (``edgeopt.onnx_module``); its
own outputs on the user's inputs are the targets. No sample that trains also selects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgeopt.model_files.tensors import read_model
from edgeopt.onnx_module.convert import to_module
from edgeopt.records.scoring import ScoreKind
from edgeopt.task.protocol import Training
from edgeopt.tasks.known_score import KnownScore

GIVEN_TRAINING = Training(epochs=20, optimizer="adamw", learning_rate=5e-4, weight_decay=0.0, hard_weight=0.0)
"""Only the teacher's outputs count; the rate is one that fits networks of any kind."""
_BATCH_SIZE = 32
_EXAMPLES = 2
_NOISE_RATIO = 1.0
"""Of the noise in ``loss``, over the spread of the outputs."""


class OnnxTrainingTask(KnownScore):
    """A given file as a task that can be pruned and trained."""

    training = GIVEN_TRAINING
    postprocessing = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self.name: str = facts["name"]
        self.input_names: tuple[str, ...] = tuple(facts["inputs"])
        self.output_names: tuple[str, ...] = tuple(facts["outputs"])
        self.shared = frozenset(facts["shared"])
        self.batch_dim = {name: None if name in self.shared else 0 for name in self.input_names}
        self.dynamic_axes = {
            name: {int(dim): axis for dim, axis in dims.items()} for name, dims in facts["dynamic"].items()
        }

    def build_model(self) -> nn.Module:
        """Return the file as a module.

        Raises:
            StepError: it has an operator without a counterpart.
        """
        return to_module(read_model(self.folder / "model.onnx"))

    @cached_property
    def _teacher(self) -> nn.Module:
        return self.build_model()

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return the first samples that train."""
        return self._rows(self._training[0], slice(_EXAMPLES))

    def train_batches(self, seed: int) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """Yield an epoch of the samples that train, in random order; those of a batch have equal shapes."""
        random = torch.Generator().manual_seed(seed)
        batches = [
            (group, rows)
            for group in self._training
            for rows in torch.split(torch.randperm(self._count(group), generator=random), _BATCH_SIZE)
        ]
        for index in torch.randperm(len(batches), generator=random).tolist():
            yield self._taught(*batches[index])

    def eval_batches(self) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """Yield the samples that select."""
        for group in self._selection:
            for rows in torch.split(torch.arange(self._count(group)), _BATCH_SIZE):
                yield self._taught(group, rows)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return how far outputs are from the file's own plus noise, over their spread.

        Without the noise the loss of the original and its gradient would be zero, and no channel would count. With it,
        the squared gradient is that of the outputs in a random direction: what a channel changes in them.
        """
        random, total = torch.Generator().manual_seed(0), torch.zeros(())
        for output, given in zip(_listed(outputs), _listed(targets), strict=True):
            if not output.is_floating_point():
                continue
            target = given.to(output.device)
            noise = torch.randn(target.shape, generator=random).to(target)
            spread = target.std().clamp_min(1e-6) if target.numel() > 1 else target.abs().clamp_min(1e-6)
            total = total + functional.mse_loss(output / spread, target / spread + _NOISE_RATIO * noise)
        return total

    def settle_score(
        self, outputs: Sequence[Sequence[NDArray[Any]]], names: Sequence[str], labels: Sequence[Any] | None
    ) -> ScoreKind:
        """Decide how outputs are compared with the file's own: as the build does without labels."""
        del labels
        return super().settle_score(outputs, names, None)

    @cached_property
    def _training(self) -> list[tuple[Tensor, ...]]:
        return self._load("training")

    @cached_property
    def _selection(self) -> list[tuple[Tensor, ...]]:
        return self._load("selection")

    def _load(self, name: str) -> list[tuple[Tensor, ...]]:
        """Return groups of samples of equal shapes, each with its inputs in order."""
        inputs = len(self.input_names)
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as stored:
            arrays = [torch.from_numpy(stored[f"arr_{index}"]) for index in range(len(stored.files))]
        return [tuple(arrays[start : start + inputs]) for start in range(0, len(arrays), inputs)]

    def _count(self, group: Sequence[Tensor]) -> int:
        return next(len(value) for name, value in zip(self.input_names, group, strict=True) if name not in self.shared)

    def _rows(self, group: Sequence[Tensor], rows: Any) -> tuple[Tensor, ...]:
        pairs = zip(self.input_names, group, strict=True)
        return tuple(value if name in self.shared else value[rows] for name, value in pairs)

    def _taught(self, group: Sequence[Tensor], rows: Any) -> tuple[tuple[Tensor, ...], Any]:
        """Return samples with the file's own outputs."""
        inputs = self._rows(group, rows)
        with torch.no_grad():
            return inputs, self._teacher(*(value.clone() for value in inputs))


def _listed(values: Any) -> list[Tensor]:
    return [values] if isinstance(values, Tensor) else list(values)
