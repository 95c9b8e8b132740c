"""A file of one layer, or of its factorized pair: both have the same input and output shapes."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgeopt.latency.single_layer import join_models, make_layer_model, split_models
from edgeopt.records.low_rank import Factorization, LowRankLayer

LINEAR = {"shape": (24, 40), "input_shape": (5, 40), "stride": (), "padding": (), "dilation": ()}
CONV1D = {"shape": (24, 6, 3), "input_shape": (6, 20), "stride": (2,), "padding": (1,), "dilation": (1,)}
CONV2D = {
    "shape": (24, 6, 3, 5), "input_shape": (6, 20, 30), "stride": (2, 1), "padding": (1, 4), "dilation": (1, 2)
}  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "form", "parameters", "output_shape"),
    [
        (LINEAR, "pointwise", 8 * 64, (2, 5, 24)),
        (CONV1D, "pointwise", 8 * (18 + 24), (2, 24, 10)),
        (CONV2D, "pointwise", 8 * (90 + 24), (2, 24, 10, 30)),
        (CONV2D, "separable", 8 * (18 + 120), (2, 24, 10, 30)),
    ],
)
def test_a_pair_has_the_output_shape_of_its_layer(layer, form, parameters, output_shape):
    record = LowRankLayer(weight="w", choices=(), **layer)
    x = np.ones((2, *layer["input_shape"]), np.float32)
    for factorization, count in ((None, record.parameters), (Factorization(rank=8, form=form), parameters)):
        model = make_layer_model(record, factorization, 2)
        onnx.checker.check_model(model, full_check=True)
        assert sum(int(np.prod(weight.dims)) for weight in model.graph.initializer) == count
        assert ReferenceEvaluator(model).run(None, {"x": x})[0].shape == output_shape


def test_joined_layers_are_unchanged_after_splitting():
    records = [LowRankLayer(weight="w", choices=(), **layer) for layer in (LINEAR, CONV1D, CONV2D)]
    models = [
        make_layer_model(record, factorization, 2)
        for record in records
        for factorization in (None, Factorization(rank=8, form="pointwise"))
    ]
    joined = join_models(models)
    onnx.checker.check_model(joined, full_check=True)
    separate = split_models(joined)
    assert len(separate) == len(models)
    for number, (model, part) in enumerate(zip(models, separate, strict=True)):
        onnx.checker.check_model(part, full_check=True)
        x = np.random.default_rng(number).standard_normal((2, *records[number // 2].input_shape)).astype(np.float32)
        expected = ReferenceEvaluator(model).run(["y"], {"x": x})[0]
        assert np.array_equal(ReferenceEvaluator(part).run(None, {f"x{number}": x})[0], expected)
