"""Masks before a softmax: minus infinity has no int8 range, and -1e9 one that rounds every score to the same number."""

import numpy as np
import onnx
import pytest
import torch
from onnx_running import run
from torch import nn

from edgeopt.bench.outputs import write_batches
from edgeopt.errors import StepError
from edgeopt.export.to_onnx import export
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.facts import read_facts
from edgeopt.records.recipe import Quantize

INT8 = Quantize(activations="uint8", per_channel=True, reduce_range=False, calibration="minmax", samples=64)
INT8_TOLERANCE = 0.05  # mean error of an output of spread 1, over four products in 8 bits


class Attention(nn.Module):
    """One layer of attention over ids, of which 0 is padding; ``mask`` writes the scores of padding."""

    def __init__(self, mask):
        super().__init__()
        self.table, self.parts, self.out, self.mask = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(16, 4), mask

    def forward(self, image):
        query, key, value = self.parts(self.table(image)).chunk(3, -1)
        scores = 3 * query @ key.transpose(1, 2)
        return self.out(self.mask(scores, (image == 0).unsqueeze(1)).softmax(-1) @ value)


def causal(scores, _):
    least = torch.full(scores.shape[-2:], float("-inf")).triu(1)
    return scores + least


MASKS = {
    "filled": lambda scores, padding: scores.masked_fill(padding, float("-inf")),
    "filled with a number": lambda scores, padding: scores.masked_fill(padding, -1e9),
    "where": lambda scores, padding: torch.where(padding, torch.finfo(torch.float32).min, scores),
    "added": lambda scores, padding: scores + (1.0 - (~padding).float()) * -1e4,
    "subtracted": lambda scores, padding: scores - 1e6 * padding.float(),
    "added where it is kept": lambda scores, padding: scores + ((~padding).float() - 1.0) * 1e4,
    "divided after it": lambda scores, padding: (2 * scores + padding.float() * -1e4) / 2,
    "causal": causal,
}


@pytest.mark.parametrize(
    ("mask", "exporter"), [*((mask, "torchscript") for mask in MASKS), ("filled", "dynamo"), ("causal", "dynamo")]
)
def test_products_around_a_masked_softmax_become_int8_and_stay_right(tmp_path, mask, exporter):
    torch.manual_seed(0)
    network = Attention(MASKS[mask]).eval()
    ids = torch.randint(1, 20, (64, 9))
    ids[:, 6:] *= torch.rand(64, 3) < 0.5
    names = {"input_names": ["image"], "output_names": ["answers"], "exporter": exporter}
    export(network, (ids[:2],), tmp_path / "m.onnx", max_opset=18, max_ir=10, **names)
    write_batches(tmp_path / "calibration.npz", [{"image": ids.numpy()}])
    options = {"calibration": tmp_path / "calibration.npz", "max_opset": 18, "max_ir": 10}
    notes = apply_steps((INT8,), tmp_path / "m.onnx", tmp_path / "out.onnx", **options)
    assert "stay float" in str(notes)
    operators = read_facts(tmp_path / "out.onnx").operators
    assert operators["QuantizeLinear"] >= 4
    with torch.no_grad():
        expected = network(ids).numpy()
    error = np.abs(run(tmp_path / "out.onnx", ids.numpy()) - expected).mean()
    assert error <= INT8_TOLERANCE * expected.std()


def test_an_infinite_value_that_is_no_mask_is_still_refused(tmp_path):
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,2] y) '
        "<float[4,2] w = {1,2,3,4,5,6,7,8}, float[4] far = {-1e9,-1e9,0,0}> "
        "{ logs = Log(x) z = Add(logs, far) s = Softmax(z) y = MatMul(s, w) }"
    )
    onnx.save(graph, tmp_path / "m.onnx")
    write_batches(tmp_path / "zeros.npz", [{"x": np.zeros((8, 4), np.float32)}])
    options = {"calibration": tmp_path / "zeros.npz", "max_opset": 17, "max_ir": 9}
    with pytest.raises(StepError, match=r"the values of 'logs' \(output of Log\) reach from -inf"):
        apply_steps((INT8,), tmp_path / "m.onnx", tmp_path / "out.onnx", **options)
