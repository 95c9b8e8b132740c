"""Whether a given ``.onnx`` can be trained, and the folder that the processes which train it load; without PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeopt.graph.facts import has_half_weights, is_quantized
from edgeopt.graph.preparation.widening import has_half_borders, widen_halves
from edgeopt.model_files.tensors import copy_model_proto, write_model
from edgeopt.tasks.onnx_data.samples import GivenSamples, SampleGroup
from edgeopt.tasks.onnx_data.split import samples_needed_to_train

TRAINING_SUFFIX = ".onnx-training"
TRAINED_FILE = "model.onnx"
"""In the folder: the given file, in float32."""


def why_untrained(model: onnx.ModelProto, samples: GivenSamples, *, is_random: bool, has_states: bool) -> str:
    """Return why candidates cannot be trained, as far as the file and its data show it; empty if they can."""
    if is_random:
        return "without --data there are no inputs to train on"
    if has_states:
        return "its states are fed back over sequences, which is not trained yet"
    if is_quantized(model):
        return "it is quantized already"
    if has_half_borders(model.graph):
        return (
            "its inputs or outputs are float16, and networks are trained in float32: give the float32 file, or one "
            "that was converted with keep_io_types=True"
        )
    other = next((name for name, axis in samples.axes.items() if axis not in (None, 0)), None)
    if other is not None:
        return f"the batch of input '{other}' is not its first dimension"
    count, needed = samples.samples, samples_needed_to_train()
    return f"{count} inputs are too few to train on: give {needed} or more" if count < needed else ""


class TrainingFacts(dict[str, Any]):
    """``name``, ``inputs`` and ``outputs`` (names), ``shared`` (inputs without a batch), ``dynamic`` (dimensions)."""


def write_training(
    folder: Path,
    model: onnx.ModelProto,
    facts: TrainingFacts,
    training: Sequence[SampleGroup],
    selection: Sequence[SampleGroup],
) -> None:
    """Write what the task needs.

    Args:
        folder: Made if it is missing; its name ends with ``TRAINING_SUFFIX``.
        model: The file; weights in 16 bits are widened to float32.
        facts: Of the file.
        training: The samples that train.
        selection: Those that help to choose an epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy = copy_model_proto(model)
    if has_half_weights(copy):
        widen_halves(copy)
    write_model(copy, folder / TRAINED_FILE)
    for name, groups in (("training", training), ("selection", selection)):
        np.savez(folder / f"{name}.npz", *(group.inputs[one] for group in groups for one in facts["inputs"]))
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
