"""Small networks for calibrating a device: micro-models that repeat one kind of operator, and held-out whole networks.

Weights are random; widths and sizes are those of networks for phones. int8 networks are written as edgeopt quantizes:
uint8 or int8 activations, int8 weights per output channel, between QuantizeLinear and DequantizeLinear. In: precisions.
Out: ``ProbeModel``s, which write themselves as ONNX files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeopt.records.profile import Precision

_OPSET, _IR_VERSION = 17, 8
"""LayerNormalization needs opset 17; every ONNX Runtime that a target may name reads both."""

ProbeRole = Literal["empty", "micro", "whole"]


class ProbeBuilder:
    """Builds one network, node by node; ``last`` and ``shape`` are the name and shape of the next node's input."""

    def __init__(self, shape: tuple[int, ...], precision: Precision, activations: Literal["uint8", "int8"]) -> None:
        self.precision = precision
        self.activations = activations
        self.element_type = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
        self.dtype = np.dtype("float16" if precision == "fp16" else "float32")
        self.inputs = [helper.make_tensor_value_info("x", self.element_type, shape)]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.last, self.shape = "x", shape
        self.rng = np.random.default_rng(0)

    def constant(self, values: NDArray[Any]) -> str:
        """Store a constant and return its name."""
        self.initializers.append(numpy_helper.from_array(values, f"c{len(self.initializers)}"))
        return self.initializers[-1].name

    def node(
        self, operator: str, *others: str, inputs: tuple[str, ...] | None = None, outputs: int = 1, **attributes: Any
    ) -> str:
        """Add a node that reads ``last`` (or ``inputs``) and return its first output, the new ``last``."""
        names = [f"n{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs or (self.last, *others), names, **attributes))
        self.last = names[0]
        return self.last

    def random(self, *shape: int, fan: int) -> NDArray[Any]:
        """Return random weights that keep the scale of activations, each a sum of ``fan`` products."""
        values: NDArray[Any] = (self.rng.standard_normal(shape) * np.sqrt(2 / fan)).astype(self.dtype)
        return values

    def quantize(self) -> None:
        """Round the activations to 8 bits if the network is int8."""
        if self.precision == "int8":
            scale, zero = self.constant(np.array(0.05, np.float32)), self.constant(np.zeros((), self.activations))
            self.node("QuantizeLinear", scale, zero)
            self.node("DequantizeLinear", scale, zero)

    def weights(self, values: NDArray[Any], axis: int) -> str:
        """Store weights and return their name; in an int8 network as int8 with a scale for each index of ``axis``."""
        if self.precision != "int8":
            return self.constant(values)
        others = tuple(index for index in range(values.ndim) if index != axis)
        scales = (np.abs(values).max(axis=others) / 127).astype(np.float32)
        shape = [-1 if index == axis else 1 for index in range(values.ndim)]
        rounded = self.constant(np.clip(np.round(values / scales.reshape(shape)), -127, 127).astype(np.int8))
        before, zeros = self.last, self.constant(np.zeros(scales.shape, np.int8))
        name = self.node("DequantizeLinear", inputs=(rounded, self.constant(scales), zeros), axis=axis)
        self.last = before
        return name

    def conv(self, channels: int, kernel: int = 3, stride: int = 1, group: int = 1, relu: bool = True) -> None:
        """Add a convolution that keeps the size (apart from the stride), and Relu."""
        batch, inside, height, width = self.shape
        self.quantize()
        values = self.random(channels, inside // group, kernel, kernel, fan=inside // group * kernel * kernel)
        self.node("Conv", self.weights(values, 0), pads=[kernel // 2] * 4, strides=[stride] * 2, group=group)
        if relu:
            self.node("Relu")
        self.shape = (batch, channels, -(-height // stride), -(-width // stride))
        self.quantize()

    def matmul(self, width: int) -> None:
        """Add a product with a matrix over the last axis."""
        self.quantize()
        self.node("MatMul", self.weights(self.random(self.shape[-1], width, fan=2 * self.shape[-1]), 1))
        self.shape = (*self.shape[:-1], width)
        self.quantize()

    def norm(self) -> None:
        """Add layer normalization over the last axis."""
        width = self.shape[-1]
        self.node(
            "LayerNormalization", self.constant(np.ones(width, self.dtype)), self.constant(np.zeros(width, self.dtype))
        )

    def recurrent(self, hidden: int) -> None:
        """Add a GRU over the second axis."""
        inside = self.shape[-1]
        self.node("Transpose", perm=(1, 0, 2))
        matrices = [self.constant(self.random(1, 3 * hidden, size, fan=2 * size)) for size in (inside, hidden)]
        self.node("GRU", *matrices, hidden_size=hidden)
        self.node("Squeeze", self.constant(np.array([1], np.int64)))
        self.node("Transpose", perm=(1, 0, 2))
        self.shape = (*self.shape[:-1], hidden)

    def attention(self, heads: int) -> None:
        """Add a transformer's self-attention, by MatMul and Softmax, with its residual."""
        before, (batch, length, width) = self.last, self.shape
        split = self.constant(np.array([batch, length, heads, width // heads], np.int64))
        projections = []
        for permutation in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
            self.last, self.shape = before, (batch, length, width)
            self.matmul(width)
            self.node("Reshape", split)
            projections.append(self.node("Transpose", perm=permutation))
        self.node("MatMul", inputs=(projections[0], projections[1]))
        self.node("Softmax", axis=-1)
        self.node("MatMul", projections[2])
        self.node("Transpose", perm=(0, 2, 1, 3))
        self.node("Reshape", self.constant(np.array([batch, length, width], np.int64)))
        self.matmul(width)
        self.node("Add", before)

    def write(self, path: Path) -> None:
        """Write the file."""
        self.node("Identity")
        outputs = [helper.make_tensor_value_info(self.last, self.element_type, None)]
        graph = helper.make_graph(self.nodes, "probe", self.inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", _OPSET)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION), path)


class ProbeModel(NamedTuple):
    """One network of a calibration."""

    name: str
    role: ProbeRole
    precision: Precision
    shape: tuple[int, ...]
    build: Callable[[ProbeBuilder], object]

    def write(self, path: Path, activations: Literal["uint8", "int8"]) -> None:
        """Write the network as ONNX."""
        net = ProbeBuilder(self.shape, self.precision, activations)
        self.build(net)
        net.write(path)


def _repeat(times: int, *steps: Callable[[ProbeBuilder], object]) -> Callable[[ProbeBuilder], None]:
    """Repeat steps: a single layer would pay for layout changes that a network's layers share."""

    def build(net: ProbeBuilder) -> None:
        for _ in range(times):
            for step in steps:
                step(net)

    return build


def _conv(kernel: int = 3) -> Callable[[ProbeBuilder], None]:
    return lambda net: net.conv(net.shape[1], kernel)


def _depthwise(net: ProbeBuilder) -> None:
    net.conv(net.shape[1], group=net.shape[1])


def _node(operator: str, **attributes: Any) -> Callable[[ProbeBuilder], object]:
    return lambda net: net.node(operator, **attributes)


def _transpose(net: ProbeBuilder) -> None:
    net.node("Transpose", perm=(0, 2, 3, 1))
    net.node("Reshape", net.constant(np.array(net.shape, np.int64)))  # free, and keeps ONNX Runtime from merging two


def _add_int8(net: ProbeBuilder) -> None:
    net.quantize()
    net.node("Add", net.last)
    net.quantize()


def _sigmoid_int8(net: ProbeBuilder) -> None:
    net.quantize()
    net.node("Sigmoid")
    net.quantize()


def _concat(net: ProbeBuilder) -> None:
    net.node("Concat", net.last, axis=1)
    ends = [net.constant(np.array([value], np.int64)) for value in (0, net.shape[1], 1)]
    net.node("Slice", *ends)


def _resize(net: ProbeBuilder) -> None:
    for factor in (2.0, 0.5):
        net.node("Resize", "", net.constant(np.array([1, 1, factor, factor], np.float32)), mode="nearest")


def _constant(operator: str) -> Callable[[ProbeBuilder], object]:
    return lambda net: net.node(operator, net.constant(np.full((1, net.shape[1], 1, 1), 0.9, net.dtype)))


def _channel_norm(net: ProbeBuilder) -> None:
    ends = (net.constant(np.ones(net.shape[1], net.dtype)), net.constant(np.zeros(net.shape[1], net.dtype)))
    net.node("InstanceNormalization", *ends)


IMAGES: tuple[tuple[int, ...], ...] = ((1, 32, 28, 28), (1, 96, 14, 14), (1, 16, 56, 56))
TOKENS: tuple[tuple[int, ...], ...] = ((1, 32, 192), (1, 64, 384), (1, 1, 768))
PROBE_KINDS: tuple[tuple[str, Precision, tuple[tuple[int, ...], ...], Callable[[ProbeBuilder], object]], ...] = (
    ("conv", "fp32", IMAGES, _repeat(3, _conv())),
    ("pointwise", "fp32", ((1, 128, 28, 28), (1, 256, 14, 14), (1, 48, 56, 56)), _repeat(3, _conv(kernel=1))),
    ("depthwise", "fp32", ((1, 128, 28, 28), (1, 256, 14, 14), (1, 48, 56, 56)), _repeat(3, _depthwise)),
    ("matmul", "fp32", TOKENS, _repeat(3, lambda net: net.matmul(net.shape[-1]))),
    ("elementwise", "fp32", ((1, 64, 28, 28), (1, 32, 56, 56)), _repeat(4, _constant("Mul"), _constant("Add"))),
    ("activation", "fp32", ((1, 64, 28, 28), (1, 32, 56, 56)), _repeat(3, _node("Sigmoid"), _node("Tanh"))),
    ("pooling", "fp32", ((1, 64, 28, 28), (1, 32, 56, 56)),
     _repeat(4, _node("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]))),
    ("normalization", "fp32", ((1, 64, 28, 28), (1, 32, 56, 56)), _repeat(4, _channel_norm)),
    ("layer norm", "fp32", ((1, 64, 384), (1, 196, 192)), _repeat(4, ProbeBuilder.norm)),
    ("softmax", "fp32", ((1, 4, 64, 64), (1, 6, 196, 196)), _repeat(4, _node("Softmax", axis=-1))),
    ("transpose", "fp32", ((1, 64, 28, 28), (1, 32, 56, 56)), _repeat(3, _transpose)),
    ("concat", "fp32", ((1, 64, 28, 28), (1, 32, 56, 56)), _repeat(3, _concat)),
    ("resize", "fp32", ((1, 64, 28, 28),), _repeat(3, _resize)),
    ("recurrent", "fp32", ((1, 40, 64), (1, 20, 192)), _repeat(2, lambda net: net.recurrent(net.shape[-1]))),
    ("conv", "int8", IMAGES, _repeat(3, _conv())),
    ("pointwise", "int8", ((1, 128, 28, 28), (1, 256, 14, 14)), _repeat(3, _conv(kernel=1))),
    ("depthwise", "int8", ((1, 128, 28, 28), (1, 256, 14, 14)), _repeat(3, _depthwise)),
    ("matmul", "int8", TOKENS[:2], _repeat(3, lambda net: net.matmul(net.shape[-1]))),
    ("quantize", "int8", ((1, 64, 28, 28), (1, 32, 56, 56)), _repeat(3, ProbeBuilder.quantize, _node("Tanh"))),
    ("elementwise", "int8", ((1, 64, 28, 28), (1, 32, 56, 56)), _repeat(4, _add_int8)),
    ("activation", "int8", ((1, 64, 28, 28), (1, 32, 56, 56)), _repeat(4, _sigmoid_int8)),
    ("conv", "fp16", IMAGES[:2], _repeat(3, _conv())),
    ("pointwise", "fp16", ((1, 128, 28, 28),), _repeat(3, _conv(kernel=1))),
    ("depthwise", "fp16", ((1, 128, 28, 28),), _repeat(3, _depthwise)),
    ("matmul", "fp16", TOKENS[:2], _repeat(3, lambda net: net.matmul(net.shape[-1]))),
)  # fmt: skip
"""Name, precision, input shapes and steps of the micro-models of each kind of operator."""


def _residual(net: ProbeBuilder) -> None:
    net.conv(16)
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        net.conv(width, stride=stride)
        before = net.last
        net.conv(width)
        net.conv(width, relu=False)
        net.node("Add", before)
        net.node("Relu")
    net.node("GlobalAveragePool")


def _mobile(net: ProbeBuilder) -> None:
    net.conv(16, stride=2)
    for width, stride in ((24, 2), (24, 1), (48, 2), (48, 1), (96, 2)):
        inside = net.shape[1]
        net.conv(4 * inside, kernel=1)
        net.conv(4 * inside, stride=stride, group=4 * inside)
        net.conv(width, kernel=1, relu=False)
    net.node("GlobalAveragePool")


def _encoder(net: ProbeBuilder) -> None:
    for _ in range(2):
        net.attention(4)
        net.norm()
        before = net.last
        width = net.shape[-1]
        net.matmul(4 * width)
        net.node("Sigmoid")
        net.matmul(width)
        net.node("Add", before)
        net.norm()


def _pyramid(net: ProbeBuilder) -> None:
    net.conv(16)
    skip = net.last
    net.node("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.shape = (*net.shape[:2], net.shape[2] // 2, net.shape[3] // 2)
    net.conv(48)
    net.conv(32)
    net.node("Resize", "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    net.node("Concat", skip, axis=1)
    net.shape = (1, 48, 2 * net.shape[2], 2 * net.shape[3])
    net.conv(16)
    net.conv(8, kernel=1, relu=False)
    net.node("Softmax", axis=1)


def _speech(net: ProbeBuilder) -> None:
    net.recurrent(128)
    net.recurrent(96)
    net.matmul(256)
    net.node("Tanh")
    net.matmul(40)


WHOLE_NETWORKS: tuple[ProbeModel, ...] = (
    ProbeModel("residual", "whole", "fp32", (1, 3, 56, 56), _residual),
    ProbeModel("mobile", "whole", "fp32", (1, 3, 112, 112), _mobile),
    ProbeModel("encoder", "whole", "fp32", (1, 48, 192), _encoder),
    ProbeModel("pyramid", "whole", "fp32", (1, 3, 64, 64), _pyramid),
    ProbeModel("speech", "whole", "fp32", (1, 30, 40), _speech),
    ProbeModel("residual", "whole", "int8", (1, 3, 56, 56), _residual),
    ProbeModel("mobile", "whole", "int8", (1, 3, 112, 112), _mobile),
    ProbeModel("residual", "whole", "fp16", (1, 3, 56, 56), _residual),
)

EMPTY_MODEL = ProbeModel("empty", "empty", "fp32", (1, 1), _node("Relu"))


def calibration_models(precisions: tuple[Precision, ...], quick: bool) -> tuple[ProbeModel, ...]:
    """Return the networks that a calibration measures: an empty one, micro-models and whole networks.

    Args:
        precisions: The target's; networks in others are left out.
        quick: Use only one size of each kind of operator.
    """
    micros = tuple(
        ProbeModel(f"{kind} {precision} {'x'.join(map(str, shape))}", "micro", precision, shape, build)
        for kind, precision, shapes, build in PROBE_KINDS
        for shape in (shapes[:1] if quick else shapes)
    )
    whole = tuple(model._replace(name=f"{model.name} {model.precision}") for model in WHOLE_NETWORKS)
    return (EMPTY_MODEL, *(model for model in (*micros, *whole) if model.precision in precisions))
