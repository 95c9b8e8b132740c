"""Norms over a batch, a sample, a group of channels or the last dimensions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeopt.onnx_module.node import Node, Operator

_FIRST_GROUP_NORM_BY_CHANNEL = 21
"""Before this operator set, GroupNormalization has one scale and bias for each group."""
_MEAN_VARIANCE_EPSILON = 1e-9


def _batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if node.get("training_mode", 0) or not node.get("spatial", 1):
        raise node.refuse(
            "normalizes over the batch (training_mode) or by position (spatial = 0): export in inference."
        )
    momentum = 1 - node.get("momentum", 0.9)  # ONNX weighs the old statistics, PyTorch the new ones
    return F.batch_norm(x, mean, variance, scale, bias, False, momentum, node.get("epsilon", 1e-5))


def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    axis, epsilon = node.get("axis", -1) % x.dim(), node.get("epsilon", 1e-5)
    sizes = list(x.shape[axis:])
    if list(scale.shape) == sizes and (bias is None or list(bias.shape) == sizes):
        normed = F.layer_norm(x, sizes, scale, bias, epsilon)
    else:
        normed = F.layer_norm(x, sizes, eps=epsilon) * scale
        normed = normed if bias is None else normed + bias
    if not node.wants(1) and not node.wants(2):
        return normed
    dims = list(range(axis, x.dim()))
    mean = x.mean(dims, keepdim=True)
    return normed, mean, torch.rsqrt(((x - mean) ** 2).mean(dims, keepdim=True) + epsilon)


def _rms_norm(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axis = node.get("axis", -1) % x.dim()
    return F.rms_norm(x, list(x.shape[axis:]), eps=node.get("epsilon", 1e-5)) * scale


def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    if node.opset < _FIRST_GROUP_NORM_BY_CHANNEL and scale.shape[0] != x.shape[1]:
        scale, bias = (value.repeat_interleave(x.shape[1] // groups) for value in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


def _response_norm(node: Node, x: Tensor) -> Tensor:
    size = node.get("size")
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    planes = (x * x).flatten(2).unsqueeze(1) if x.dim() > 2 else (x * x)[:, None, :, None]
    sums = F.avg_pool2d(F.pad(planes, (0, 0, before, after)), (size, 1), stride=1).squeeze(1).reshape(x.shape)
    scale: Tensor = (node.get("bias", 1.0) + node.get("alpha", 1e-4) * sums) ** node.get("beta", 0.75)
    return x / scale


def _mean_variance(node: Node, x: Tensor) -> Tensor:
    axes = node.get("axes", [0, 2, 3])
    mean = x.mean(axes, keepdim=True)
    deviation = torch.sqrt((x * x).mean(axes, keepdim=True) - mean * mean)
    return (x - mean) / (deviation + _MEAN_VARIANCE_EPSILON)


def _lp_norm(node: Node, x: Tensor) -> Tensor:
    axis, order = node.get("axis", -1), node.get("p", 2)
    length = torch.linalg.vector_norm(x, order, dim=axis, keepdim=True)
    return x / torch.where(length == 0, torch.ones_like(length), length)


TABLE: dict[str, Operator] = {
    "BatchNormalization": Operator(_batch_norm, weights=(1, 2)),
    "InstanceNormalization": Operator(_instance_norm, weights=(1, 2)),
    "LayerNormalization": Operator(_layer_norm, weights=(1, 2)),
    "RMSNormalization": Operator(_rms_norm, weights=(1,)),
    "GroupNormalization": Operator(_group_norm, weights=(1, 2)),
    "LRN": Operator(_response_norm),
    "MeanVarianceNormalization": Operator(_mean_variance),
    "LpNormalization": Operator(_lp_norm),
}
