"""ONNX's own tests of operators, and which of them a converted module does not pass, with the reason."""

import warnings
from functools import cache

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases

FIRST_INPUT_ONLY = 1
TEXT = "text"
SEQUENCES = "sequences and optional values, not tensors"
SIZES_FROM_DATA = "the size of its result depends on data, which a traced graph cannot express"
LOOPS = "control flow, which a traced graph cannot express"
RANDOM = "random numbers"
INTEGERS = "computes on quantized numbers: the file is quantized already"
TRAINING = "a step of a training, not of a network"
TREES = "classical machine learning, not a network"
FEW = "not seen in the files of networks that were looked at"

REFUSED_OPERATORS = {
    "StringConcat": TEXT, "StringNormalizer": TEXT, "StringSplit": TEXT, "RegexFullMatch": TEXT,
    "TfIdfVectorizer": TEXT,
    "ImageDecoder": TEXT,
    "SequenceConstruct": SEQUENCES, "SplitToSequence": SEQUENCES, "OptionalGetElement": SEQUENCES,
    "OptionalHasElement": SEQUENCES, "SequenceEmpty": SEQUENCES, "SequenceInsert": SEQUENCES,
    "SequenceAt": SEQUENCES, "SequenceLength": SEQUENCES, "SequenceErase": SEQUENCES, "ConcatFromSequence": SEQUENCES,
    "SequenceMap": SEQUENCES, "Optional": SEQUENCES,
    "Compress": SIZES_FROM_DATA, "NonMaxSuppression": SIZES_FROM_DATA, "NonZero": SIZES_FROM_DATA,
    "Unique": SIZES_FROM_DATA,
    "Loop": LOOPS, "Scan": LOOPS, "If": LOOPS,
    "Bernoulli": RANDOM, "RandomUniformLike": RANDOM, "RandomUniform": RANDOM, "RandomNormal": RANDOM,
    "RandomNormalLike": RANDOM, "Multinomial": RANDOM,
    "QuantizeLinear": INTEGERS, "DequantizeLinear": INTEGERS, "DynamicQuantizeLinear": INTEGERS,
    "QLinearConv": INTEGERS,
    "QLinearMatMul": INTEGERS, "ConvInteger": INTEGERS, "MatMulInteger": INTEGERS,
    "Adagrad": TRAINING, "Adam": TRAINING, "Momentum": TRAINING, "Gradient": TRAINING,
    "LabelEncoder": TREES, "TreeEnsemble": TREES, "Binarizer": TREES, "ArrayFeatureExtractor": TREES,
    "BitCast": FEW, "BlackmanWindow": FEW, "HannWindow": FEW, "HammingWindow": FEW, "Col2Im": FEW, "DFT": FEW,
    "STFT": FEW, "DeformConv": FEW, "MaxUnpool": FEW, "MelWeightMatrix": FEW, "RoiAlign": FEW, "TensorScatter": FEW,
    "CausalConvWithState": FEW, "LinearAttention": FEW, "FlexAttention": FEW,
    "Attention": "forms that ONNX's inliner cannot expand",
}  # fmt: skip
"""Operators that are refused, with the reason."""

REFUSED_FORMS = (
    "has dilations",
    "normalizes over the batch",
    "is in training mode",
    "has peepholes",
    "resizes with antialiasing",
    "in column-major order",
    "which torch does not compute with",
    "casts to",
    "non-zero size",
    "sizes have to be known",
    "is a constant of",
    "fills with",
)
"""Parts of the messages on forms of known operators that are refused."""

OTHERWISE = {
    "test_top_k_same_values": "torch does not say which of several equal values comes first",
    "test_top_k_same_values_largest": "as above",
    "test_top_k_same_values_2d": "as above",
    "test_resize_downsample_scales_linear_align_corners": "ONNX Runtime rounds the new size, as here",
    "test_resize_downsample_scales_cubic_align_corners": "as above",
    "test_attention_4d_causal_fp16": "half precision: one rounding more",
    "test_attention_4d_causal_fp16_expanded": "half precision: one rounding more",
}
"""Tests whose outputs differ, with the reason."""


@cache
def arrays_tests():
    """Return ``(name, model, inputs, outputs, rtol, atol)`` of the tests that are about arrays of numbers."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        for inputs, outputs in case.data_sets:
            if all(_is_array(value) for value in (*inputs, *outputs)):
                found.append((case.name, case.model, inputs, outputs, case.rtol, max(case.atol, 1e-6)))
    return found


def _is_array(value) -> bool:
    if not isinstance(value, np.ndarray | np.generic | float | int):
        return False
    return np.asarray(value).dtype.name not in ("bfloat16", "object") and np.asarray(value).dtype.kind != "V"


def with_constants(model: onnx.ModelProto, inputs, kept: int) -> onnx.ModelProto:
    """Return a model whose inputs after the first ones are initializers, as weights and axes are in real files."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    values = list(model.graph.input)
    del changed.graph.input[:]
    for place, (value, array) in enumerate(zip(values, inputs, strict=True)):
        if place < kept:
            changed.graph.input.append(value)
        else:
            changed.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), value.name))
    return changed
