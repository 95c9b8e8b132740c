"""``SensitivityStudy``: what int8 does to a network's outputs, by method and by node. ``FakeQuantSites``: what its file rounds."""

from __future__ import annotations

from typing import Literal

from edgeopt.records.base import Record
from edgeopt.records.recipe import CalibrationMethod

Preparation = Literal["equalization", "bias correction", "equalization and bias correction"]
"""What ``Quantize.equalize`` and ``Quantize.correct_bias`` do."""


class NodeNoise(Record, frozen=True, kw_only=True):
    """How much a node's int8 form disturbs the network's outputs."""

    node: str
    snr_db: float
    """Signal to quantization noise at the outputs where this node alone is in int8."""
    cost_ratio: float
    """Mean of its shares of the weights' bytes and of the multiply-accumulates: what float would cost."""


class SensitivityStudy(Record, frozen=True, kw_only=True):
    """What was found on samples that did not calibrate."""

    method_snr_db: dict[CalibrationMethod, float]
    """Calibration method to signal to quantization noise at the outputs, every node in int8."""
    method: CalibrationMethod
    """The best one; ``minmax`` unless another is clearly better."""
    preparation_snr_db: dict[Preparation, float]
    """The same with that method, by what is done before; only what changes the network."""
    preparation: Preparation | None
    """The best one where it is clearly better than none."""
    ranking: tuple[NodeNoise, ...]
    """In the order in which nodes go back to float: most noise taken away for the cost first; empty if not asked."""


class FloatPrefix(Record, frozen=True, kw_only=True):
    """The first nodes of a network, where float is quicker than int8 on one device."""

    nodes: tuple[str, ...]
    """In the graph's order; empty where int8 pays from the first on."""


class FakeQuantActivation(Record, frozen=True, kw_only=True):
    """A value of the float graph that the int8 file rounds."""

    tensor: str
    scale: float
    zero_point: int
    shift: float
    """Added before rounding: where a hard sigmoid is written as rounding, half a step. Else 0."""


class FakeQuantWeight(Record, frozen=True, kw_only=True):
    """Weights that the int8 file holds as integers, with a scale from their largest absolute value."""

    tensor: str
    axis: int | None
    """Dimension whose every index has a scale of its own; None: one scale for all."""
    input_scale: float | None
    """Times a weight's scale: the step of the bias, which the file holds in 32 bits. None where there is no such."""


class FakeQuantSites(Record, frozen=True, kw_only=True):
    """All that the int8 file of a network rounds. Levels are the least and the greatest integer."""

    activations: tuple[FakeQuantActivation, ...]
    weights: tuple[FakeQuantWeight, ...]
    activation_levels: tuple[int, int]
    weight_levels: tuple[int, int]
    ranges: dict[str, tuple[float, float]]
    """Value of the float graph to the range that its rounding was made from."""
