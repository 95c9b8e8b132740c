"""Outputs that are a list with an entry for each sample, as detectors return them: refused with the next step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from edgeopt.errors import TaskError
from edgeopt.task.nesting import tensors_of

_ADVICE = (
    "The outputs of a graph are a fixed number of tensors, with the batch as a dimension. Let the model return its raw "
    "outputs as tensors, before boxes are selected, and select them in score(): `edgeopt guide detection` shows how."
)


def check_outputs_per_sample(outputs: Any, inputs: Sequence[Any], title: str) -> None:
    """Check that outputs are not a list of dicts, one for each sample.

    Dicts for each scale of a network are fine: the first dimension of their tensors is the batch.

    Args:
        outputs: As the model returned them.
        inputs: One value for each parameter of the model.
        title: Names the task and the model in errors.

    Raises:
        TaskError: they are.
    """
    if not isinstance(outputs, list | tuple) or not outputs or not all(isinstance(one, Mapping) for one in outputs):
        return
    keys = [tuple(one) for one in outputs]
    first = inputs[0]
    samples = len(first) if isinstance(first, list | tuple) or (isinstance(first, Tensor) and first.dim()) else 0
    has_batch = all(leaf.ndim and leaf.shape[0] == samples for leaf in tensors_of(outputs))
    if len(outputs) != samples or len(set(keys)) > 1 or (has_batch and samples > 1):
        return
    raise TaskError(
        f"{title} returns a {type(outputs).__name__} of {len(outputs)} dict{'s' if len(outputs) > 1 else ''} "
        f"({', '.join(map(str, keys[0]))}), one for each sample. {_ADVICE}"
    )


def check_number_of_outputs(whole: int, alone: Sequence[int], samples: int) -> None:
    """Check that one sample has as many outputs as a batch.

    Args:
        whole: Tensors that the model returns for a batch.
        alone: Tensors that it returns for one sample, for each of several.
        samples: In the batch.

    Raises:
        TaskError: it has fewer.
    """
    other = next((count for count in alone if count != whole), None)
    if other is not None:
        raise TaskError(
            f"the model returns {whole} tensors for {samples} samples of example_inputs(), but {other} for one. "
            f"{_ADVICE}"
        )
