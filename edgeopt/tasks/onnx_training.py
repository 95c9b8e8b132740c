"""The PyTorch task of a given ``.onnx`` file, for the processes that prune and train: it learns its own outputs.

In: a folder that ``write_training`` wrote. The file becomes a module (``edgeopt.onnx_module``); its own outputs on the
user's inputs are the targets. No row that trains also selects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgeopt.onnx_module.convert import to_module
from edgeopt.records.scoring import ScoreKind
from edgeopt.task.protocol import Training
from edgeopt.tasks.known_score import KnownScore

TRAINING_SUFFIX = ".onnx-training"
GIVEN_TRAINING = Training(epochs=20, optimizer="adamw", learning_rate=1e-3, weight_decay=0.0, hard_weight=0.0)
"""Only the teacher's outputs count; the rate is one that fits networks of any kind."""
_BATCH_SIZE = 32
_EXAMPLES = 2
_NOISE_RATIO = 1.0
"""Of the noise in ``loss``, over the spread of the outputs."""

_Arrays = Mapping[str, NDArray[Any]]


class TrainingFacts(dict[str, Any]):
    """``name``, ``inputs`` and ``outputs`` (names), ``shared`` (inputs without a batch), ``dynamic`` (dimensions)."""


def write_training(folder: Path, model: bytes, facts: TrainingFacts, training: _Arrays, selection: _Arrays) -> None:
    """Write what the task needs.

    Args:
        folder: Made if it is missing; its name ends with ``TRAINING_SUFFIX``.
        model: The file's bytes.
        facts: Of the file.
        training: The rows that train, by input.
        selection: Those that select the best epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    for name, arrays in (("training", training), ("selection", selection)):
        np.savez(folder / f"{name}.npz", *(arrays[one] for one in facts["inputs"]))
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


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
        return to_module(onnx.load(self.folder / "model.onnx"))

    @cached_property
    def _teacher(self) -> nn.Module:
        return self.build_model()

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return the first rows that train."""
        return self._rows(self._training, slice(_EXAMPLES))

    def train_batches(self, seed: int) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """Yield an epoch of the rows that train, in random order."""
        order = torch.randperm(self._count(self._training), generator=torch.Generator().manual_seed(seed))
        for rows in torch.split(order, _BATCH_SIZE):
            yield self._rows(self._training, rows), self._rows_of(self._training_outputs, rows)

    def eval_batches(self) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """Yield the rows that select."""
        for rows in torch.split(torch.arange(self._count(self._selection)), _BATCH_SIZE):
            yield self._rows(self._selection, rows), self._rows_of(self._selection_outputs, rows)

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
    def _training(self) -> tuple[Tensor, ...]:
        return self._load("training")

    @cached_property
    def _selection(self) -> tuple[Tensor, ...]:
        return self._load("selection")

    @cached_property
    def _training_outputs(self) -> tuple[Tensor, ...]:
        return self._outputs(self._training)

    @cached_property
    def _selection_outputs(self) -> tuple[Tensor, ...]:
        return self._outputs(self._selection)

    def _load(self, name: str) -> tuple[Tensor, ...]:
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as stored:
            return tuple(torch.from_numpy(stored[f"arr_{index}"]) for index in range(len(self.input_names)))

    def _count(self, arrays: Sequence[Tensor]) -> int:
        return next(len(value) for name, value in zip(self.input_names, arrays, strict=True) if name not in self.shared)

    def _rows(self, arrays: Sequence[Tensor], rows: Any) -> tuple[Tensor, ...]:
        pairs = zip(self.input_names, arrays, strict=True)
        return tuple(value if name in self.shared else value[rows] for name, value in pairs)

    @staticmethod
    def _rows_of(arrays: Sequence[Tensor], rows: Any) -> Any:
        found = tuple(value[rows] for value in arrays)
        return found[0] if len(found) == 1 else found

    @torch.no_grad()
    def _outputs(self, arrays: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the file's own outputs on all rows."""
        parts = [
            _listed(self._teacher(*self._rows(arrays, rows)))
            for rows in torch.split(torch.arange(self._count(arrays)), _BATCH_SIZE)
        ]
        return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def _listed(values: Any) -> list[Tensor]:
    return [values] if isinstance(values, Tensor) else list(values)
