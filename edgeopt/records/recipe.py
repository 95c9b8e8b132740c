"""``Recipe``: how a candidate is made. Torch steps come first, graph steps after; a wrong order cannot be written."""

from __future__ import annotations

from typing import Literal

from edgeopt.records.base import Record
from edgeopt.records.low_rank import Factorization

ImportanceMethod = Literal["l1", "l2", "batch-norm", "gradient", "taylor", "hessian", "activation", "random"]
CalibrationMethod = Literal["minmax", "entropy", "percentile", "mse"]
Optimizer = Literal["sgd", "adamw"]


class Importance(Record, frozen=True, kw_only=True):
    """How channels are scored; ``edgeopt.passes.prune.importance`` says what the words mean."""

    method: ImportanceMethod = "taylor"
    reduction: Literal["sum", "mean", "max"] = "sum"
    """From the scores of a channel's slots (its rows of each tensor) to the channel's."""
    normalization: Literal["none", "mean", "max"] = "none"
    """What a group's scores are divided by, so that groups compare."""


class Prune(Record, frozen=True, kw_only=True, tag_field="step", tag="prune"):
    """Remove whole channels. ``widths`` says how many channels each group keeps; groups not named keep all."""

    importance: Importance
    widths: dict[str, int]


class Sparsify(Record, frozen=True, kw_only=True, tag_field="step", tag="sparsify"):
    """Set single weights to zero and keep them there: the download shrinks, the latency does not."""

    method: Literal["magnitude", "gradient", "taylor"]
    ratio: float
    """Share of the weights that becomes zero, 0..1."""
    scope: Literal["global", "layer", "block"]
    """Where that share is taken: of all weights, of each layer, of every ``block`` neighbours (2:4 and its like)."""
    block: int = 0
    schedule: Literal["once", "cubic"]
    """All at once, or growing over the first epochs of the training that follows."""


class LowRank(Record, frozen=True, kw_only=True, tag_field="step", tag="low-rank"):
    """Make two layers in a row of one, with few channels between them; layers not named keep their form."""

    layers: dict[str, Factorization]
    """By the name of the layer's weight."""


class Student(Record, frozen=True, kw_only=True, tag_field="step", tag="student"):
    """Start from one of the task's own smaller networks instead of the trained model."""

    name: str


class Distill(Record, frozen=True, kw_only=True, tag_field="step", tag="distill", omit_defaults=True):
    """Train the network under the trained model's eyes (Hinton et al., 2015)."""

    epochs: int
    optimizer: Optimizer
    learning_rate: float
    weight_decay: float
    warmup_ratio: float
    """Share of all optimizer steps in which the rate rises from zero; a cosine brings it back."""
    temperature: float
    kl_weight: float
    mse_weight: float
    hard_weight: float
    group_lasso: float = 0.0
    """Strength, at the end, of a penalty that shrinks whole channels: for a training before a cut."""


class QuantizeAware(Record, frozen=True, kw_only=True, tag_field="step", tag="quantize-aware"):
    """Let the training that follows round as the network's int8 file does (Jacob et al., 2018).

    The file is the ``Quantize`` step of these values; its ranges, calibrated before the training, stay.
    """

    activations: Literal["uint8", "int8"]
    per_channel: bool
    reduce_range: bool
    calibration: CalibrationMethod
    samples: int


class Simplify(Record, frozen=True, kw_only=True, tag_field="step", tag="simplify"):
    """Fold constants and remove what computes nothing, with onnxsim."""


class FlushDenormals(Record, frozen=True, kw_only=True, tag_field="step", tag="flush-denormals"):
    """Set weights too small for a normal float to zero: they slow some processors by up to 40 times."""


class Quantize(Record, frozen=True, kw_only=True, tag_field="step", tag="quantize", omit_defaults=True):
    """Static int8 with quantize and dequantize nodes (QDQ), weights int8, calibrated on training batches."""

    activations: Literal["uint8", "int8"]
    per_channel: bool
    reduce_range: bool
    """Weights in 7 bits: no saturation on x86 processors without VNNI."""
    calibration: CalibrationMethod | Literal["trained"]
    """``trained``: the ranges that the network was trained with (``QuantizeAware``); nothing is calibrated."""
    samples: int
    """How many training samples calibrate."""
    float_nodes: tuple[str, ...] = ()
    """Names of the nodes that stay float, in the prepared graph."""
    equalize: bool = False
    """Scale the channels between two convolutions alike first; see ``edgeopt.graph.quantization.cross_layer_equalization``."""
    correct_bias: bool = False
    """Fold the mean error of rounded weights into the biases; see ``edgeopt.graph.quantization.bias_correction``."""


class QuantizeDynamic(Record, frozen=True, kw_only=True, tag_field="step", tag="quantize-dynamic", omit_defaults=True):
    """Int8 weights of matrix products and LSTM cells; the ranges of activations are found when the network runs."""

    reduce_range: bool
    """Weights in 7 bits: no saturation on x86 processors without VNNI."""
    float_nodes: tuple[str, ...] = ()
    """Names of the nodes that stay float."""


class QuantizeWeights(Record, frozen=True, kw_only=True, tag_field="step", tag="quantize-weights"):
    """Weights of matrix products in few bits, activations in float; for the CPU provider alone."""

    bits: Literal[4, 8]
    block: int
    """Weights along the summed axis that share a scale and a zero point; a power of two, 16 or more."""


class Float16(Record, frozen=True, kw_only=True, tag_field="step", tag="float16"):
    """Weights and activations in float16; inputs and outputs stay float32."""


class FuseQLinear(Record, frozen=True, kw_only=True, tag_field="step", tag="fuse-qlinear"):
    """Write quantize and dequantize nodes as ONNX Runtime's integer operators; for the CPU provider alone."""


class Compact(Record, frozen=True, kw_only=True, tag_field="step", tag="compact"):
    """Drop metadata, share equal initializers, shorten inner names: fewer bytes, the same computation."""


QuantizeStep = Quantize | QuantizeDynamic | QuantizeWeights
"""What makes a file an integer one."""
TorchStep = Student | Prune | Sparsify | LowRank | QuantizeAware | Distill
GraphStep = Simplify | FlushDenormals | QuantizeStep | FuseQLinear | Float16 | Compact


class Recipe(Record, frozen=True, kw_only=True):
    """All that decides a candidate's weights and graph, given the task."""

    torch_steps: tuple[TorchStep, ...]
    graph_steps: tuple[GraphStep, ...]
    seed: int
    parent: str | None
    """Key of the network (``codec.network_key``) whose weights this one starts from; None is the trained model."""
