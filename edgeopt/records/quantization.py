"""How int8 and fewer bits disturb a network, and the values and weights that its int8 file rounds."""

from __future__ import annotations

from typing import Literal

from edgeopt.records.base import Record
from edgeopt.records.recipe import CalibrationMethod

Preparation = Literal["equalization", "bias correction", "equalization and bias correction"]
"""Steps before quantization, as ``Quantize.equalize`` and ``Quantize.correct_bias`` ask for them."""


class NodeNoise(Record, frozen=True, kw_only=True):
    """How much a node in int8 disturbs the network's outputs."""

    node: str
    snr_db: float
    """Signal to quantization noise at the outputs with only this node in int8."""
    cost_ratio: float
    """The cost of float: the mean of its shares of the weights' bytes and of the multiply-accumulates."""


class SensitivityStudy(Record, frozen=True, kw_only=True):
    """How int8 changes a network's outputs, by method and by node, on samples that did not calibrate."""

    method_snr_db: dict[CalibrationMethod, float]
    """Calibration method to signal to quantization noise at the outputs, with every node in int8."""
    method: CalibrationMethod
    """The best one; ``minmax`` unless another is clearly better."""
    preparation_snr_db: dict[Preparation, float]
    """The same with that method, by preparation; only preparations that change the network."""
    preparation: Preparation | None
    """The best one; None unless it is clearly better than no preparation."""
    ranking: tuple[NodeNoise, ...]
    """In the order in which nodes go back to float: most noise removed for the cost first. Empty if not asked for."""


class WeightNoise(Record, frozen=True, kw_only=True):
    """How much the rounding of one weight disturbs the network's outputs."""

    weight: str
    values: int
    noise_ratio: float
    """Noise over signal at the outputs, in power, with only this weight in ``edgeopt.graph.weights.bit_study.BITS``."""
    is_packed: bool = True
    """Whether fewer than 8 bits save bytes; they do not in branches and loop bodies."""
    node: str = ""
    """The convolution or product that it belongs to; static int8 rounds no others."""


class BitStudy(Record, frozen=True, kw_only=True):
    """How much fewer bits disturb a network's outputs, weight by weight, on samples that did not calibrate."""

    noises: tuple[WeightNoise, ...]
    """In the graph's order."""


class FloatPrefix(Record, frozen=True, kw_only=True):
    """The first nodes of a network, if they are faster in float than in int8 on one device."""

    nodes: tuple[str, ...]
    """In the graph's order; empty if int8 pays from the first node on."""


class FakeQuantActivation(Record, frozen=True, kw_only=True):
    """A value of the float graph that the int8 file rounds."""

    tensor: str
    scale: float
    zero_point: int
    shift: float
    """Added before rounding: half a step if a hard sigmoid is written as rounding, else 0."""


class FakeQuantWeight(Record, frozen=True, kw_only=True):
    """Weights that the int8 file holds as integers, with a scale from their largest absolute value."""

    tensor: str
    axis: int | None
    """The dimension with one scale per index; None: one scale for all weights."""
    input_scale: float | None
    """Times a weight's scale: the step of the bias, which the file holds in 32 bits. None without a bias."""
    levels: tuple[int, int]
    """The least and the greatest integer."""


class FakeQuantSites(Record, frozen=True, kw_only=True):
    """Everything that the int8 file of a network rounds."""

    activations: tuple[FakeQuantActivation, ...]
    weights: tuple[FakeQuantWeight, ...]
    activation_levels: tuple[int, int]
    """The least and the greatest integer."""
    ranges: dict[str, tuple[float, float]]
    """Value of the float graph to the range that its scale was computed from."""
