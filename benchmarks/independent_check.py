"""Compare a pruned network with its original *module*, whose removed channels are set to zero, without our interpreter.

The proof of ``edgeopt.passes.prune`` runs the traced graph node by node. This check shares none of that: it runs the
user's own module in float64, on inputs of another batch size, and compares the outputs only. A norm over channels would
count the zeros, which a pruned network does not have; so norms that are modules are computed over the kept channels.
A network cannot be checked from outside if its own code has a norm, a mean or a softmax over channels or a cast to
float32, or if it uses torch's fused encoder: ``CHECKED`` names networks without these.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups

CHECKED = (
    "resnet18", "regnet", "repvgg", "mobilenet_v2", "mobilenet_v3", "efficientnet", "shufflenet_v2", "squeezenet",
    "ghostnet", "densenet", "inception", "unet", "deeplab_v3", "lr_aspp", "bisenet", "ssd_lite", "tcn", "autoencoder",
    "bert", "vit", "ds_cnn", "tc_resnet", "gru", "lstm", "crnn", "mobileone", "res2net", "vovnet",
    "dpn", "coordinate_attention", "coatnet", "maxvit", "pvt", "ddrnet", "stdc", "segnet", "hrnet", "unet_plus_plus",
    "attention_unet", "efficientdet", "centernet", "fcos", "edsr", "rcan", "espcn", "dncnn", "vae", "r2plus1d",
    "slowfast", "convlstm", "wavenet", "dtln", "crnn_ocr", "quartznet", "demucs", "text_cnn", "siamese", "nerf",
    "siren", "gcn",
)  # fmt: skip
BATCH_SIZE = 3


class _KeptLayerNorm(nn.Module):
    """Layer norm over the kept channels of the last dimension; the others stay at zero."""

    def __init__(self, norm: nn.LayerNorm, kept: Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        out = torch.zeros_like(x)
        weight, bias = self.norm.weight[self.kept], self.norm.bias[self.kept]
        out[..., self.kept] = F.layer_norm(x[..., self.kept], (len(self.kept),), weight, bias, self.norm.eps)
        return out


class _KeptGroupNorm(nn.Module):
    """Group norm over the kept channels of each group; the others stay at zero."""

    def __init__(self, norm: nn.GroupNorm, kept: Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        out = torch.zeros_like(x)
        size = self.norm.num_channels // self.norm.num_groups
        for group in range(self.norm.num_groups):
            members = self.kept[self.kept // size == group]
            if len(members):
                weight, bias = self.norm.weight[members], self.norm.bias[members]
                out[:, members] = F.group_norm(x[:, members], 1, weight, bias, self.norm.eps)
        return out


def mask_module(model: nn.Module, groups: Groups, keep: Mapping[str, Sequence[int]]) -> nn.Module:
    """Return a float64 copy of the original module with the removed channels at zero."""
    masked = copy.deepcopy(model).double().eval()
    kept = {slot: torch.from_numpy(indices) for slot, indices in groups.kept(keep).items()}
    for (name, dim), indices in kept.items():
        tensor: Tensor = operator.attrgetter(name)(masked).data
        lost = np.setdiff1d(np.arange(tensor.shape[dim]), indices.numpy())
        tensor.index_fill_(dim, torch.from_numpy(lost), 0.0)
    for name, part in list(masked.named_modules()):
        indices_of_norm = kept.get((f"{name}.weight", 0))
        if indices_of_norm is not None and isinstance(part, (nn.LayerNorm, nn.GroupNorm)):
            wrapped = _KeptLayerNorm if isinstance(part, nn.LayerNorm) else _KeptGroupNorm
            masked.set_submodule(name, wrapped(part, indices_of_norm))  # type: ignore[arg-type]
    return masked


def compare_with_module(
    model: nn.Module, groups: Groups, keep: Mapping[str, Sequence[int]], pruned: Network, inputs: Sequence[Tensor]
) -> float:
    """Return the largest difference of an output, relative to the largest value in it; infinite if shapes differ.

    Args:
        model: The original module.
        groups: The result of ``analyse`` for the original.
        keep: The kept channels, by group.
        pruned: The pruned network, not trained since.
        inputs: One batch, of another size than the one it was traced with.
    """
    doubled = [x.double() if x.is_floating_point() else x for x in inputs]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # for tensors that forward() makes
    try:
        with torch.no_grad():
            expected = _flatten(mask_module(model, groups, keep)(*doubled))
            found = _flatten(_in_float64(pruned)(*doubled))
    finally:
        torch.set_default_dtype(default)
    if [x.shape for x in expected] != [x.shape for x in found]:
        return float("inf")
    return max(_relative_error(x.double(), y.double()) for x, y in zip(expected, found, strict=True))


def _relative_error(expected: Tensor, found: Tensor) -> float:
    if not bool(expected.isfinite().all() & found.isfinite().all()):
        return float("inf")
    largest = float(expected.abs().max())
    return float((expected - found).abs().max()) / largest if largest > 0 else float(found.abs().max())


def _in_float64(network: Network) -> nn.Module:
    """Return a copy of a network's graph in float64, whose literal types are float64 too."""
    module = copy.deepcopy(network.eval_module).double()
    for node in module.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), _widen)
    module.recompile()
    return module


def _widen(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


def _flatten(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    items = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for item in items for tensor in _flatten(item)]
