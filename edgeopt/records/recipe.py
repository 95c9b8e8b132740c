"""``Recipe``: how a trial is made. Torch steps come first, graph steps after; a wrong order cannot be written."""

from __future__ import annotations

from typing import Literal

from edgeopt.records.base import Record
from edgeopt.records.low_rank import Factorization
from edgeopt.records.profile import Precision
from edgeopt.records.unseen_rows import KeptRows

ImportanceMethod = Literal["l1", "l2", "batch-norm", "gradient", "taylor", "hessian", "activation", "random"]
CalibrationMethod = Literal["minmax", "entropy", "percentile", "mse"]
Optimizer = Literal["sgd", "adamw"]
MAX_EPOCHS_RATIO = 3
"""Limit for the epochs that a small data set is trained for, over those of the step."""
WeightBits = Literal[3, 4, 5, 6, 8]
StoredBits = Literal[3, 4, 5, 6, 8, 16]
MultiplyPrecision = Literal["float32", "bfloat16", "float16"]
"""The precision of a training's products; weights are kept in float32."""


class Importance(Record, frozen=True, kw_only=True):
    """How channels are scored; ``edgeopt.passes.prune.importance`` defines the words."""

    method: ImportanceMethod = "taylor"
    reduction: Literal["sum", "mean", "max"] = "sum"
    """From the scores of a channel's slots (its rows of each tensor) to the channel's score."""
    normalization: Literal["none", "mean", "max"] = "none"
    """The divisor of a group's scores, which makes groups comparable."""


class Prune(Record, frozen=True, kw_only=True, tag_field="step", tag="prune"):
    """Remove whole channels. ``widths`` is the number of channels that each group keeps; groups not named keep all.

    If all groups of a branch keep none, the branch is left out.
    """

    importance: Importance
    widths: dict[str, int]
    fitted_samples: int = 0
    """Training samples on which each layer's weights are then fitted to what the layer computed before the cut."""


class Sparsify(Record, frozen=True, kw_only=True, tag_field="step", tag="sparsify"):
    """Set single weights to zero and keep them at zero: the download shrinks, the latency does not."""

    method: Literal["magnitude", "gradient", "taylor"]
    ratio: float
    """Share of the weights that becomes zero, 0..1."""
    scope: Literal["global", "layer", "block"]
    """The share applies to all weights together, to each layer, or to every ``block`` neighbours (as in 2:4)."""
    block: int = 0
    schedule: Literal["once", "cubic"]
    """In one step, or growing over the first epochs of the training that follows."""


class LowRank(Record, frozen=True, kw_only=True, tag_field="step", tag="low-rank"):
    """Factorize layers: each becomes two in a row, with few channels between them. Layers not named stay."""

    layers: dict[str, Factorization]
    """Keyed by the name of the layer's weight."""


class LowerResolution(Record, frozen=True, kw_only=True, tag_field="step", tag="lower-resolution"):
    """Shrink the image to ``height`` x ``width`` before the network, and enlarge its maps after it.

    The file's inputs and outputs keep their shapes.
    """

    height: int
    width: int


class Student(Record, frozen=True, kw_only=True, tag_field="step", tag="student"):
    """Start from one of the task's own smaller networks instead of the trained model."""

    name: str


class Distill(Record, frozen=True, kw_only=True, tag_field="step", tag="distill", omit_defaults=True):
    """Train the network to reproduce the teacher's outputs (knowledge distillation; Hinton et al., 2015)."""

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
    """Final strength of a penalty that shrinks whole channels, for a training that comes before pruning."""
    min_steps: int = 0
    """If the epochs have fewer optimizer steps, there are more epochs, up to ``MAX_EPOCHS_RATIO`` times as many."""
    ema: float = 0.0
    """Decay of the weights' moving average, which is evaluated and kept instead of the weights themselves; 0: none."""
    precision: MultiplyPrecision | None = None
    """None: what the device multiplies fast. The recipe leaves it open: either is as good."""
    may_stop: bool = True
    """Whether it ends early if its network cannot reach the score that it must have."""
    find_rate: bool = False
    """Whether short trials lower the rate if a network would lose at it what it knows."""
    ended_after: int | None = None
    """Epochs after which it was cut off, because the time of its build was over; None: none of them is left out."""

    def epochs_for(self, batches: int) -> int:
        """Return the epochs of a training whose epochs have that many batches."""
        needed = -(-self.min_steps // batches)
        return max(self.epochs, min(needed, MAX_EPOCHS_RATIO * self.epochs))


class QuantizeAware(Record, frozen=True, kw_only=True, tag_field="step", tag="quantize-aware", omit_defaults=True):
    """Make the training that follows round as the network's int8 file does (Jacob et al., 2018).

    The file is made by the ``Quantize`` step with these values. Its ranges are calibrated before the training and stay.
    """

    activations: Literal["uint8", "int8"]
    per_channel: bool
    reduce_range: bool
    calibration: CalibrationMethod
    samples: int
    weight_bits: WeightBits | None = None
    """Of large weights; None: as many as int8 has."""


class DropUnseenRows(Record, frozen=True, kw_only=True, tag_field="step", tag="drop-unseen-rows"):
    """Drop the rows of embedding tables that no training sample reads; ids without a row of their own share one."""

    tables: dict[str, KeptRows]
    """Keyed by the name of the table in the exported file; tables not named keep all rows."""


class Simplify(Record, frozen=True, kw_only=True, tag_field="step", tag="simplify"):
    """Fold constants and remove nodes that compute nothing, with onnxsim."""


class FlushDenormals(Record, frozen=True, kw_only=True, tag_field="step", tag="flush-denormals"):
    """Set weights too small for a normal float to zero: they slow some processors down by up to 40 times."""


class Quantize(Record, frozen=True, kw_only=True, tag_field="step", tag="quantize", omit_defaults=True):
    """Static int8 with quantize and dequantize nodes (QDQ), int8 weights, calibrated on training batches."""

    activations: Literal["uint8", "int8"]
    per_channel: bool
    reduce_range: bool
    """Weights in 7 bits: no saturation on x86 processors without VNNI."""
    calibration: CalibrationMethod | Literal["trained"]
    """``trained``: the ranges that the network was trained with (``QuantizeAware``); nothing is calibrated."""
    samples: int
    """Number of training samples that calibrate."""
    float_nodes: tuple[str, ...] = ()
    """Names of the nodes that stay float, in the prepared graph."""
    equalize: bool = False
    """Even out channel ranges between convolutions first (``edgeopt.graph.quantization.cross_layer_equalization``)."""
    correct_bias: bool = False
    """Fold the mean error of rounded weights into the biases (``edgeopt.graph.quantization.bias_correction``)."""
    weight_bits: WeightBits | None = None
    """None: each weight is rounded to the nearest step of int8. Otherwise weights have that many bits, and are rounded
    so that their errors cancel over the calibration samples (``edgeopt.graph.rounding``); 8 keeps the steps."""
    bits_of: tuple[tuple[str, StoredBits], ...] = ()
    """Names of weights with bits of their own, at most 8; the others have ``weight_bits``."""


class QuantizeDynamic(Record, frozen=True, kw_only=True, tag_field="step", tag="quantize-dynamic", omit_defaults=True):
    """Int8 weights in matrix products and LSTM cells; the ranges of activations are found when the network runs."""

    reduce_range: bool
    """Weights in 7 bits: no saturation on x86 processors without VNNI."""
    float_nodes: tuple[str, ...] = ()
    """Names of the nodes that stay float."""
    samples: int = 0
    """Number of training samples over which the errors of weights in few bits cancel."""
    weight_bits: WeightBits = 8
    """Of products and embedding tables, as in ``StoreWeights``; cells have 8."""
    bits_of: tuple[tuple[str, StoredBits], ...] = ()
    """Names of weights with bits of their own; the others have ``weight_bits``."""


class QuantizeWeights(Record, frozen=True, kw_only=True, tag_field="step", tag="quantize-weights", omit_defaults=True):
    """Weights of matrix products in few bits, activations in float; for the CPU provider only."""

    bits: Literal[4, 8]
    block: int
    """Weights along the summed axis that share a scale and a zero point; a power of two, 16 or more."""
    samples: int = 0
    """Number of training samples over which rounding errors cancel; 0: each weight is rounded to the nearest step."""


class StoreWeights(Record, frozen=True, kw_only=True, tag_field="step", tag="store-weights", omit_defaults=True):
    """Weights of any operator in int8 with a scale for each channel, float again after loading; all else is float.

    After another quantization: the weights that it has left in float.
    """

    weight_bits: WeightBits = 8
    """With fewer than 8, ``PackWeights`` stores the int8 tensors densely."""
    samples: int = 0
    """Number of training samples over which rounding errors cancel; 0: each weight is rounded to the nearest step."""
    bits_of: tuple[tuple[str, StoredBits], ...] = ()
    """Names of weights with bits of their own; the others have ``weight_bits``. With 16, it is stored in int16."""


class PackWeights(Record, frozen=True, kw_only=True, tag_field="step", tag="pack-weights"):
    """Store int8 weights that need fewer bits densely; ONNX Runtime unpacks them when it loads the file."""


class Float16(Record, frozen=True, kw_only=True, tag_field="step", tag="float16"):
    """Weights and activations in float16; inputs and outputs stay float32."""


class FuseQLinear(Record, frozen=True, kw_only=True, tag_field="step", tag="fuse-qlinear"):
    """Replace quantize and dequantize nodes with ONNX Runtime's integer operators; for the CPU provider only."""


class Compact(Record, frozen=True, kw_only=True, tag_field="step", tag="compact", omit_defaults=True):
    """Drop metadata, share equal initializers, shorten inner names: fewer bytes, the same computation."""

    keep_names: bool = False
    convolves_transforms: bool = True
    """Whether short-time Fourier transforms are written as convolutions, if these are faster: with weights that ONNX
    Runtime computes when it loads the file."""


BitsStep = Quantize | QuantizeDynamic | StoreWeights
"""The steps whose weights may have fewer bits than 8."""
QuantizeStep = Quantize | QuantizeDynamic | QuantizeWeights | StoreWeights
"""The steps that make a file an int8 one."""
RefinementStep = Sparsify | LowRank | LowerResolution
"""The steps that change a trained network of its size; the result is compared with it."""
TorchStep = Student | Prune | Sparsify | LowRank | LowerResolution | QuantizeAware | Distill
GraphStep = DropUnseenRows | Simplify | FlushDenormals | QuantizeStep | FuseQLinear | PackWeights | Float16 | Compact


class Recipe(Record, frozen=True, kw_only=True):
    """Everything that decides a trial's weights and graph, given the task."""

    torch_steps: tuple[TorchStep, ...]
    graph_steps: tuple[GraphStep, ...]
    seed: int
    parent: str | None
    """Key of the network (``edgeopt.store.keys``) whose weights this one starts from; None is the trained model."""

    @property
    def precision(self) -> Precision:
        """The precision that the graph steps lead to."""
        if any(isinstance(step, QuantizeStep) for step in self.graph_steps):
            return "int8"
        return "fp16" if any(isinstance(step, Float16) for step in self.graph_steps) else "fp32"

    @property
    def only_stores_weights(self) -> bool:
        """Whether weights are in int8 and everything is computed in float, so that it is not faster than float32."""
        steps = [step for step in self.graph_steps if isinstance(step, QuantizeStep)]
        return bool(steps) and all(isinstance(step, StoreWeights) for step in steps)

    def is_of_network(self, other: Recipe) -> bool:
        """Tell whether both make their file of the same network."""
        return (self.torch_steps, self.parent) == (other.torch_steps, other.parent)

    @property
    def is_original(self) -> bool:
        """Whether the network has the trained model's own structure and starts from its weights."""
        is_quantization_aware = any(isinstance(step, QuantizeAware) for step in self.torch_steps)
        return self.parent is None and (is_quantization_aware or not self.torch_steps)
