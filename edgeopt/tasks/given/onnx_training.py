"""The PyTorch task of a given ``.onnx`` file, for the processes that prune and train: it learns its own outputs.

In: a folder that ``edgeopt.tasks.given.onnx_trainable`` wrote. The file becomes a module (``edgeopt.onnx_module``); its
own outputs on the user's inputs are the targets (``edgeopt.tasks.own_outputs``). No sample that trains also selects.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgeopt.errors import TaskError
from edgeopt.model_files.tensors import read_model
from edgeopt.onnx_module.batch_norms import measure_convolutions, restore_batch_norms
from edgeopt.onnx_module.convert import to_module
from edgeopt.onnx_module.module import OnnxModule
from edgeopt.records.scoring import ScoreKind, ScoreWish
from edgeopt.scoring.facts import flat_arrays
from edgeopt.task.batch_axes import Axes, count_samples, take_samples
from edgeopt.task.nesting import tensors_of
from edgeopt.task.protocol import Training
from edgeopt.tasks.given.onnx_trainable import TRAINED_FILE
from edgeopt.tasks.known_score import KnownScore
from edgeopt.tasks.own_outputs import CONVOLUTIONAL_TRAINING, LABEL_FREE_TRAINING, OwnOutputs, SampleTensors

_EXAMPLES = 2
_MEASURED_SAMPLES, _SAMPLES_AT_ONCE = 256, 8
"""Whose values inside the graph give the batch norms their statistics."""
_SMALL_STEPS = frozenset({"LSTM", "GRU", "RNN", "LayerNormalization", "Attention", "Erf", "Gelu", "Sqrt", "Reciprocal"})
"""Operators of recurrent layers and of transformers, also of a layer norm that is written out."""


def choose_training(graph: onnx.GraphProto) -> Training:
    """Return how candidates of a graph are trained."""
    operators = {node.op_type for node in graph.node}
    return CONVOLUTIONAL_TRAINING if "Conv" in operators and not operators & _SMALL_STEPS else LABEL_FREE_TRAINING


class OnnxTrainingTask(OwnOutputs, KnownScore):
    """A given file as a task that can be pruned and trained."""

    postprocessing = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self.name: str = facts["name"]
        self.input_names: tuple[str, ...] = tuple(facts["inputs"])
        self.output_names: tuple[str, ...] = tuple(facts["outputs"])
        self.score_wish = ScoreWish(score=facts["score"], output=facts["score_output"])
        self.batch_dim = {name: None if name in facts["shared"] else 0 for name in self.input_names}
        self.dynamic_axes = {
            name: {int(dim): axis for dim, axis in dims.items()} for name, dims in facts["dynamic"].items()
        }

    def build_model(self) -> nn.Module:
        """Return the file as a module, with the batch norms that an export folded into convolutions.

        Raises:
            StepError: it has an operator without a counterpart.
        """
        module = to_module(read_model(self.folder / TRAINED_FILE))
        if self.training == CONVOLUTIONAL_TRAINING:
            restore_batch_norms(module, self._statistics(module))
        return module

    def _statistics(self, module: OnnxModule) -> dict[str, Tensor]:
        """Return those of the convolutions, which the first process measures for all."""
        path = self.folder / "statistics.safetensors"
        if not path.exists():
            found = measure_convolutions(module, self._first_batches())
            with tempfile.TemporaryDirectory(dir=self.folder) as temporary:  # moved to its place whole
                new = Path(temporary) / path.name
                save_file(found, new)
                new.replace(path)
        return load_file(path)

    def _first_batches(self) -> Iterator[SampleTensors]:
        """Yield a few samples of each shape in turn, the smallest shape first, that stand for all."""
        groups = sorted(self.training_groups, key=lambda group: sum(value[:1].numel() for value in group))
        left = _MEASURED_SAMPLES
        for start in range(0, left, _SAMPLES_AT_ONCE):
            for group in groups:
                rows = range(start, min(start + _SAMPLES_AT_ONCE, count_samples(group, self.sample_axes)))
                if rows and left > 0:
                    yield take_samples(group, self.sample_axes, rows)
                    left -= len(rows)

    @cached_property
    def training(self) -> Training:
        """How candidates are trained."""
        return choose_training(read_model(self.folder / TRAINED_FILE).graph)

    @cached_property
    def _teacher(self) -> nn.Module:
        return self.build_model()

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return the first samples that train."""
        first = self.training_groups[0]
        return take_samples(first, self.sample_axes, range(min(_EXAMPLES, count_samples(first, self.sample_axes))))

    @property
    def sample_axes(self) -> Axes:
        """The first dimension of each input that all samples don't share."""
        return tuple(self.batch_dim[name] for name in self.input_names)

    def answer(self, inputs: SampleTensors) -> tuple[Tensor, ...]:
        """Return the file's own outputs."""
        with torch.no_grad():
            return tuple(tensors_of(self._teacher(*(value.clone() for value in inputs))))

    def settle_score(
        self, outputs: Sequence[Sequence[NDArray[Any]]], names: Sequence[str], labels: Sequence[Any] | None
    ) -> ScoreKind:
        """Decide how outputs are compared with the file's own: as the build does without labels.

        Outputs whose first dimension is not the samples, such as the last states of a recurrent cell, are not judged.

        Args:
            outputs: Of the first batches.
            names: Of the outputs.
            labels: The file's own outputs for all batches.

        Raises:
            DataError, TaskError: see ``choose_agreement``; a TaskError too if no output can be judged.
        """
        own = outputs if labels is None else [flat_arrays(batch) for batch in labels]
        sizes = self.batch_sizes(self.selection_groups)
        judged = [
            index
            for index, name in enumerate(names)
            if self.score_wish.output in (None, name)
            and all(batch[index].ndim and len(batch[index]) == size for batch, size in zip(own, sizes, strict=False))
        ]
        if not judged:
            raise TaskError(
                f"{self.name}: no output that is judged has its samples in dimension 0, so it cannot be trained."
            )
        kind = super().settle_score(
            [[batch[index] for index in judged] for batch in own], [names[index] for index in judged], None
        )
        parts = tuple(msgspec.structs.replace(part, index=judged[part.index]) for part in kind.parts)
        self.score_kind = msgspec.structs.replace(kind, parts=parts)
        return self.score_kind

    @cached_property
    def training_groups(self) -> list[SampleTensors]:
        """The samples that train."""
        return self._load("training")

    @cached_property
    def selection_groups(self) -> list[SampleTensors]:
        """The samples that help to choose an epoch."""
        return self._load("selection")

    def _load(self, name: str) -> list[SampleTensors]:
        """Return groups of samples of equal shapes, each with its inputs in order."""
        inputs = len(self.input_names)
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as stored:
            arrays = [torch.from_numpy(stored[f"arr_{index}"]) for index in range(len(stored.files))]
        return [tuple(arrays[start : start + inputs]) for start in range(0, len(arrays), inputs)]
