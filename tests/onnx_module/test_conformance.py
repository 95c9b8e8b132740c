"""Converted modules on ONNX's own tests of operators."""

import numpy as np
import pytest
import torch
from node_tests import FIRST_INPUT_ONLY, OTHERWISE, REFUSED_FORMS, REFUSED_OPERATORS, arrays_tests, with_constants

from edgeopt.errors import StepError
from edgeopt.onnx_module.convert import to_module

LEAST_PASSED = {"constants": 1000, "inputs": 600}
"""Fewer would mean that the tests of ONNX are no longer found, or refused as a whole."""


def difference(model, inputs, outputs, kept, rtol, atol) -> str:
    """Return how a converted module differs from a test's outputs; empty if it does not."""
    module = to_module(with_constants(model, inputs, kept))
    with torch.no_grad():
        found = module(*(torch.from_numpy(np.array(value)) for value in inputs[:kept]))
    for got, wanted in zip(found if isinstance(found, tuple) else (found,), outputs, strict=True):
        values, expected = got.numpy(), np.asarray(wanted)
        if values.dtype != expected.dtype or values.shape != expected.shape:
            return f"{values.dtype} {values.shape} instead of {expected.dtype} {expected.shape}"
        if not np.allclose(values, expected, rtol=rtol, atol=atol, equal_nan=True):
            return f"off by {np.abs(values.astype(np.float64) - expected.astype(np.float64)).max()}"
    return ""


def is_refused_for_a_reason(message: str) -> bool:
    operator = message.removeprefix("convert: operator ").split(" of node")[0].rpartition(".")[2]
    return operator in REFUSED_OPERATORS or any(part in message for part in REFUSED_FORMS)


@pytest.mark.parametrize("form", ["constants", "inputs"])
def test_operators_compute_what_onnx_says_or_are_refused_for_a_reason(form):
    passed, problems = 0, []
    for name, model, inputs, outputs, rtol, atol in arrays_tests():
        kept = min(FIRST_INPUT_ONLY, len(inputs)) if form == "constants" else len(inputs)
        try:
            problem = "" if name in OTHERWISE else difference(model, inputs, outputs, kept, rtol, atol)
        except StepError as error:
            problem = "" if is_refused_for_a_reason(str(error)) else str(error)
            passed -= 1
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            problem = "" if is_refused_for_a_reason(str(error)) else f"{type(error).__name__}: {error}"
            passed -= 1
        passed += 1
        problems += [f"{name}: {problem}"] if problem else []
    assert not problems, "\n".join(problems)
    assert passed > LEAST_PASSED[form]
