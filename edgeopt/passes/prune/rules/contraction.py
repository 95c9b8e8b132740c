"""Operators that mix channels: convolutions, linear layers, matrix products, attention.

All of them broadcast their operands to a common shape, multiply, and sum over some dimensions. Along the summed
dimensions, labels of the operands go together and end; the other labels pass to the result.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.labels import FIXED_SIZE, KERNEL, Labels, Marked, compress
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.elementwise import make_independent, match, split, sum_over


def contract(
    labels: Labels, operands: Sequence[Marked], terms: Sequence[Sequence[Hashable]], result: Sequence[Hashable]
) -> Layers:
    """Multiply operands with named dimensions, and sum over the names that the result does not have.

    Example: a linear layer is ``contract(labels, [x, weight], ["bk", "nk"], "bn")``.
    """
    names = [*result, *dict.fromkeys(name for term in terms for name in term if name not in result)]
    arranged = [_arrange(operand, list(term), names) for operand, term in zip(operands, terms, strict=True)]
    shape = [max(operand.shape[dim] for operand in arranged) for dim in range(len(names))]
    summed_dims = range(len(result), len(names))
    layers = sum_over(labels, match(labels, arranged, shape), set(summed_dims))
    return tuple(layer.reshape(layer.shape[: len(result)]) for layer in layers)


def _arrange(value: Marked, term: list[Hashable], names: list[Hashable]) -> Marked:
    """Put dimensions in the order of ``names``, with size 1 for names that the value does not have."""
    order = [term.index(name) for name in names if name in term]
    missing = [position for position, name in enumerate(names) if name not in term]

    def arrange_layer(layer: Tensor) -> Tensor:
        layer = layer.permute(order)
        for position in missing:
            layer = layer.unsqueeze(position)
        return layer

    shape = tuple(value.shape[term.index(name)] if name in term else 1 for name in names)
    return Marked(shape, tuple(map(arrange_layer, value.layers)))


def linear(labels: Labels, call: Call) -> Layers:
    """``x[..., k] weight[n, k] + bias[n]``."""
    x = call["input"]
    outer_dims = list(range(len(x.shape) - 1))
    return _add_bias(
        labels,
        call,
        contract(labels, [x, call["weight"]], [[*outer_dims, "k"], "nk"], [*outer_dims, "n"]),
        call["bias"],
    )


def matmul(labels: Labels, call: Call) -> Layers:
    """``one[..., m, k] other[..., k, n]``; a vector lacks m or n."""
    one, other = call.operands[-2:]
    row, column = ["m"] * (len(one.shape) > 1), ["n"] * (len(other.shape) > 1)
    terms = [[*_outer_dims(one, 2), *row, "k"], [*_outer_dims(other, 2), "k", *column]]
    outer_dims = max(_outer_dims(one, 2), _outer_dims(other, 2), key=len)
    return contract(labels, [one, other], terms, [*outer_dims, *row, *column])


def _outer_dims(value: Marked, inner: int) -> list[Hashable]:
    """Name all dimensions but the last ``inner``, counted from the back as in broadcasting."""
    return list(range(-max(len(value.shape) - inner, 0), 0))


def addmm(labels: Labels, call: Call) -> Layers:
    """``bias + one[..., m, k] other[..., k, n]``."""
    return _add_bias(labels, call, matmul(labels, call), call["self"])


def addbmm(labels: Labels, call: Call) -> Layers:
    """``bias + sum of one[b, m, k] other[b, k, n] over b``."""
    products = contract(labels, [call["batch1"], call["batch2"]], ["bmk", "bkn"], "mn")
    return _add_bias(labels, call, products, call["self"])


def outer(labels: Labels, call: Call) -> Layers:
    """``one[i] other[j]``."""
    return contract(labels, call.operands, "ij", "ij")


def addr(labels: Labels, call: Call) -> Layers:
    """``bias + one[i] other[j]``."""
    return _add_bias(labels, call, contract(labels, call.operands[-2:], "ij", "ij"), call["self"])


def bilinear(labels: Labels, call: Call) -> Layers:
    """``one[..., i] weight[n, i, j] other[..., j] + bias[n]``."""
    one, other, weight = (call[name] for name in ("input1", "input2", "weight"))
    outer_dims = _outer_dims(one, 1)
    terms = [[*outer_dims, "i"], [*outer_dims, "j"], "nij"]
    return _add_bias(labels, call, contract(labels, [one, other, weight], terms, [*outer_dims, "n"]), call["bias"])


def einsum(labels: Labels, call: Call) -> Layers:
    """Handle any equation, except one that takes a diagonal."""
    operands = call["tensors"]
    inputs, _, output = call["equation"].replace(" ", "").partition("->")
    terms = [_parse_term(term, operand) for term, operand in zip(inputs.split(","), operands, strict=True)]
    if any(len(set(term)) < len(term) for term in terms):
        labels.freeze([layer for operand in operands for layer in operand.layers], "a diagonal")
        return ()
    if "->" not in call["equation"]:
        letters = [letter for letter in inputs if letter.isalpha()]
        output = "..." * ("..." in inputs) + "".join(sorted(name for name in letters if letters.count(name) == 1))
    return contract(labels, operands, terms, _parse_term(output, Marked(call.shape)))


def _parse_term(term: str, value: Marked) -> list[Hashable]:
    before, dots, after = term.partition("...")
    hidden = len(value.shape) - len(before) - len(after) if dots else 0
    return [*before, *range(-hidden, 0), *after]


def attention(labels: Labels, call: Call) -> Layers:
    """``softmax(query[..., l, e] key[..., s, e] + mask[..., l, s]) value[..., s, v]``; heads may share keys."""
    query, key, value, mask = (call[name] for name in ("query", "key", "value", "attn_mask"))
    if call.get("enable_gqa"):
        key, value = (_repeat_heads(shared, query.shape[-3]) for shared in (key, value))
    outer_dims = _outer_dims(query, 2)
    if call.get("is_causal"):
        query, key = (_keep_positions(labels, part) for part in (query, key))
    scores = contract(labels, [query, key], [[*outer_dims, "l", "e"], [*outer_dims, "s", "e"]], [*outer_dims, "l", "s"])
    marked = Marked((*query.shape[:-1], key.shape[-2]), scores)
    if mask is not None:
        marked = Marked(marked.shape, match(labels, [marked, mask], marked.shape))
    weights = make_independent(labels, marked.layers, {len(marked.shape) - 1}, "softmax over these")
    terms = [[*outer_dims, "l", "s"], [*outer_dims, "s", "v"]]
    return contract(labels, [Marked(marked.shape, weights), value], terms, [*outer_dims, "l", "v"])


def _keep_positions(labels: Labels, value: Marked) -> Marked:
    """Keep the positions of queries or keys: a causal mask is made by their number."""
    positions = {len(value.shape) - 2}
    return Marked(value.shape, make_independent(labels, value.layers, positions, "positions of a causal mask"))


def _repeat_heads(value: Marked, heads: int) -> Marked:
    """Repeat the heads of keys or values for all the query heads that share them."""
    times = heads // value.shape[-3]
    layers = tuple(layer.repeat_interleave(times, -3) if layer.shape[-3] > 1 else layer for layer in value.layers)
    return Marked((*value.shape[:-3], heads, *value.shape[-2:]), layers)


def _add_bias(labels: Labels, call: Call, layers: Layers, bias: Marked | None) -> Layers:
    return match(labels, [Marked(call.shape, layers)] + ([bias] if bias is not None else []), call.shape)


def convolution(labels: Labels, call: Call) -> Layers:
    """Handle a convolution of any rank, ``weight[out, in / groups, *kernel]``."""
    return _convolve(labels, call, transposed=bool(call.get("transposed")))


def transposed_convolution(labels: Labels, call: Call) -> Layers:
    """Handle a transposed convolution, ``weight[in, out / groups, *kernel]``."""
    return _convolve(labels, call, transposed=True)


def _convolve(labels: Labels, call: Call, transposed: bool) -> Layers:
    """Treat channels as (groups, channels of a group): the j-th goes from every group, or whole groups go."""
    x, bias, groups = call["input"], call["bias"], int(call["groups"])
    if len(x.shape) != len(call["weight"].shape):
        labels.freeze([layer for value in call.operands for layer in value.layers], "a convolution without a batch")
        return ()
    positions = range(len(x.shape) - 2)
    whole = {at for at in positions if not transposed and _spans_input(call, at)}
    mixed = {at + 2 for at in positions if at not in whole and not _is_pointwise(call, at)}
    x = _split_groups(_without_dims(labels, x, mixed, FIXED_SIZE), 1, groups)
    kernel = {at + 2 for at in positions if at not in whole}
    weight = _split_groups(_without_dims(labels, call["weight"], kernel, KERNEL), 0, groups)
    read: list[Hashable] = [("summed", at) if at in whole else at for at in positions]
    matrix = "gkn" if transposed else "gnk"
    terms = [["b", "g", "k", *read], [*matrix, *(("summed", at) for at in positions)]]
    layers = contract(labels, [x, weight], terms, ["b", "g", "n", *positions])
    channels = [layer for layer in layers if layer.shape[1] > 1 or layer.shape[2] > 1]
    if len([layer for layer in channels if layer.shape[0] == 1]) > 1:
        layers = (labels.follow(channels, ()), *(layer for layer in layers if layer.shape[1:3] == (1, 1)))
    layers = tuple(compress(_merge_groups(layer, groups, call.shape[1])) for layer in layers)
    if bias is not None:
        ones = [1] * len(positions)
        bias = Marked((*bias.shape, *ones), tuple(layer.reshape(-1, *ones) for layer in bias.layers))
    return _add_bias(labels, call, layers, bias)


def _is_pointwise(call: Call, position: int) -> bool:
    """Tell whether a convolution mixes and moves nothing along a dimension of positions."""
    if call["weight"].shape[2 + position] > 1 or _entry(call, "stride", position) > 1:
        return False
    is_unpadded = _entry(call, "padding", position) == _entry(call, "output_padding", position) == 0
    return call["padding"] == "same" or is_unpadded


def _spans_input(call: Call, position: int) -> bool:
    """Tell whether a kernel is as large as what it reads, so that it sums once over all positions, as over channels.

    TextCNN's kernels span whole word vectors.
    """
    size = call["weight"].shape[2 + position]
    is_unpadded = call["padding"] != "same" and _entry(call, "padding", position) == 0
    return size > 1 and size == call["input"].shape[2 + position] and is_unpadded


def _entry(call: Call, name: str, position: int) -> int:
    """Return an argument's number for a dimension of positions; 0 if it has none."""
    value = call.get(name, 0)
    if isinstance(value, str):
        return 0
    return int(value[min(position, len(value) - 1)] if isinstance(value, (list, tuple)) else value)


def _without_dims(labels: Labels, value: Marked, dims: set[int], why: str) -> Marked:
    """Make the layers independent of some dimensions, and give these size 1."""
    shape = tuple(1 if dim in dims else size for dim, size in enumerate(value.shape))
    return Marked(shape, make_independent(labels, value.layers, dims, why))


def _merge_groups(layer: Tensor, groups: int, channels: int) -> Tensor:
    """Merge groups and their channels into one dimension."""
    batch, positions = layer.shape[0], layer.shape[3:]
    if layer.shape[1:3] == (1, 1):
        return layer.squeeze(2)
    return layer.expand(batch, groups, channels // groups, *positions).reshape(batch, channels, *positions)


def _split_groups(value: Marked, dim: int, groups: int) -> Marked:
    """Split a dimension of a matrix into groups. Samples that were folded into groups have the same labels in each."""
    sizes = (groups, value.shape[dim] // groups)
    shape = (*value.shape[:dim], *sizes, *value.shape[dim + 1 :])
    parts = (split(layer, dim, sizes if layer.shape[dim] > 1 else (1, 1)) for layer in value.layers)
    return Marked(shape, tuple(map(compress, parts)))


RULES: dict[Any, Rule] = {
    aten.linear: linear,
    aten.matmul: matmul,
    aten.mm: matmul,
    aten.bmm: matmul,
    aten.mv: matmul,
    aten.dot: matmul,
    aten.vdot: matmul,
    aten.addmm: addmm,
    aten.baddbmm: addmm,
    aten.addmv: addmm,
    aten.addbmm: addbmm,
    aten.addr: addr,
    aten.outer: outer,
    aten.bilinear: bilinear,
    aten.einsum: einsum,
    aten.scaled_dot_product_attention: attention,
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution), convolution),
    **dict.fromkeys((aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d), transposed_convolution),
}
