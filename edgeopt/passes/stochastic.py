"""What is random only in training and would be lost in a trace of the evaluation mode.

- *Stochastic depth* (DropPath: Huang et al., 2016) is a module that returns its input in evaluation and drops whole
  samples in training. It is recognized by what it does, whatever its class is called. In the trace it is a dropout that
  does nothing, which the training graph applies to samples.
- *Attention dropout* is an argument that is zero in evaluation. The training graph gets the one of a run in training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeopt.passes.aten import aten
from edgeopt.passes.training_run import TrainingRun, module_path

_SAMPLES = 256
_TRIES = 16
_TRAINING_POSITION = 13
"""Of ``training`` among the arguments of multi-head attention; nearly everyone gives it by name."""
SAMPLE_DROPOUT = "drops_samples"
ATTENTION_DROPOUT = "training_dropout"
"""Keys of a node's ``meta``, which copies of a graph keep."""


def find_sample_dropouts(model: nn.Module, run: TrainingRun) -> dict[str, float]:
    """Return the modules that drop whole samples in training, by path, with their probability.

    Args:
        model: In training mode; each module's ``training`` flag is restored.
        run: Of the model in training.
    """
    found = {}
    for name in run.random:
        part, shape = model.get_submodule(name), run.shapes_read.get(name, ())
        is_leaf = not any(True for _ in part.children()) and not any(True for _ in part.parameters())
        if is_leaf and len(shape) >= 2 and not type(part).__module__.startswith("torch.nn."):
            probability = _sample_dropout(part, len(shape))
            if probability is not None:
                found[name] = probability
    return found


def _sample_dropout(part: nn.Module, dims: int) -> float | None:
    """Return with which probability a module drops a sample and scales the others; None if it does anything else."""
    ones = torch.ones(_SAMPLES, *[2] * (dims - 1))
    training = part.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            part.training = False
            if not torch.equal(part(ones), ones):
                return None
            part.training = True
            for _ in range(_TRIES):
                values = part(ones).flatten(1)
                kept = values[values[:, 0] != 0]
                if values.shape[0] != _SAMPLES or not torch.equal(values, values[:, :1].expand_as(values)):
                    return None
                if 0 < len(kept) < _SAMPLES:
                    scale = float(kept[0, 0])
                    return 1 - 1 / scale if scale > 1 and bool((kept == scale).all()) else None
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return None
    finally:
        part.training = training
    return None


@contextlib.contextmanager
def visible_dropouts(model: nn.Module, sample_dropouts: Mapping[str, float]) -> Iterator[None]:
    """Let dropouts that evaluation skips appear in a trace, for the length of a block.

    Args:
        model: The model to be traced.
        sample_dropouts: The result of ``find_sample_dropouts``.
    """
    original: Any = functional.multi_head_attention_forward
    with contextlib.ExitStack() as stack:
        for name, probability in sample_dropouts.items():
            part = model.get_submodule(name)

            def forward(x: Tensor, *_: Any, p: float = probability, **__: Any) -> Tensor:
                return functional.dropout(x, p, training=False)

            object.__setattr__(part, "forward", forward)
            stack.callback(object.__delattr__, part, "forward")

        def attention(*args: Any, **kwargs: Any) -> Any:
            if len(args) > _TRAINING_POSITION:
                return original(*args, **kwargs)
            with _dropouts_off():
                return original(*args, **{**kwargs, "training": True})

        functional.multi_head_attention_forward = attention
        stack.callback(setattr, functional, "multi_head_attention_forward", original)
        yield


@contextlib.contextmanager
def _dropouts_off() -> Iterator[None]:
    """Let the dropouts inside multi-head attention do nothing, but appear in a trace, for the length of a block."""
    functions: Any = functional
    dropout, product = functions.dropout, functions.scaled_dot_product_attention

    def off(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        result: Tensor = dropout(x, p, False, inplace)
        return result

    def attention(
        query: Tensor, key: Tensor, value: Tensor, mask: Any = None, dropout_p: float = 0.0, *rest: Any
    ) -> Any:
        return product(query, key, value, mask, 0.0, *rest)

    functions.dropout, functions.scaled_dot_product_attention = off, attention
    try:
        yield
    finally:
        functions.dropout, functions.scaled_dot_product_attention = dropout, product


def mark_dropouts(graph: fx.Graph, sample_dropouts: Mapping[str, float], attention: Sequence[float]) -> None:
    """Write what is random in training into the nodes of a trace, while they still know their modules.

    Args:
        graph: The trace.
        sample_dropouts: The result of ``find_sample_dropouts``.
        attention: The dropout of each scaled dot product attention in training, in order.
    """
    for node in graph.nodes:
        if node.target is aten.dropout.default and module_path(node) in sample_dropouts:
            node.meta[SAMPLE_DROPOUT] = True
    products = [node for node in graph.nodes if node.target is aten.scaled_dot_product_attention.default]
    if len(products) == len(attention):
        for node, probability in zip(products, attention, strict=True):
            if probability:
                node.meta[ATTENTION_DROPOUT] = probability


def drop_samples(graph: fx.Graph) -> None:
    """Let the marked dropouts of a training graph drop whole samples.

    A dropout of features has one random number for each pair of the first two dimensions: with a dimension of 1 put in
    as the second, one for each sample.
    """
    for node in list(graph.nodes):
        if not node.meta.get(SAMPLE_DROPOUT):
            continue
        value, probability = node.args[:2]
        with graph.inserting_before(node):
            rows = graph.call_function(aten.unsqueeze.default, (value, 1))
            dropped = graph.call_function(aten.feature_dropout.default, (rows, probability, True))
            result = graph.call_function(aten.squeeze.dim, (dropped, 1))
        node.replace_all_uses_with(result)
        graph.erase_node(node)
