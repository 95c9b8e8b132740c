"""A real small model, and the bundle written from it."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.helper
import pytest
from builders import a_choice
from tiny_bundles import AN_ORIGIN, a_golden

from edgeopt.bundle.golden import NO_GOLDEN
from edgeopt.bundle.write import write_bundle
from edgeopt.records.choice import Choice

INPUTS = {"images": np.arange(12, dtype=np.float32).reshape(1, 12) / 12}
OUTPUTS = {
    "logits": np.array([[-2.5, 0.5, 1.25]], dtype=np.float32),
    "label": np.array([2], dtype=np.int64),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A linear layer and its class, with a dynamic batch."""
    weights = np.linspace(-1, 1, 36, dtype=np.float32).reshape(12, 3)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["images", "weights"], ["logits"]),
            onnx.helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        ],
        "linear",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 12])],
        [
            onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3]),
            onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["batch"]),
        ],
        [onnx.helper.make_tensor("weights", onnx.TensorProto.FLOAT, (12, 3), weights.tobytes(), raw=True)],
    )
    path = tmp_path / "winner.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.fixture
def write(model: Path):
    """Write a bundle: of the choice with the model, or of one without a winner."""

    def writer(
        out: Path, choice: Choice | None = None, *, labels: tuple[str, ...] = ("cat", "dog", "fox"), key=None
    ) -> None:
        choice = choice or a_choice()
        won = choice.winner is not None
        write_bundle(
            out,
            choice,
            model=model if won else None,
            golden=a_golden(INPUTS, OUTPUTS) if won else NO_GOLDEN,
            origin=msgspec.structs.replace(AN_ORIGIN, labels=labels),
            key=key,
        )

    return writer
