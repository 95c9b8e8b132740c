"""Resize and its older form Upsample, and sampling on a grid.

If torch's ``interpolate`` computes the same, it is used. Otherwise each dimension is resized on its own: an element of
the result is a weighted sum of one (nearest), two (linear) or four (cubic) elements, as ONNX defines Resize.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.onnx_module.node import Node, Operator
from edgeopt.onnx_module.values import Numbers, as_list

_SPATIAL_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
_FIRST_RESIZE_WITH_MODES = 11
_CUBIC_OF_TORCH = -0.75


class _Plan:
    """The sizes, scales and modes of a resize."""

    def __init__(
        self, node: Node, x: Tensor, roi: Numbers | None, scales: Numbers | None, sizes: Numbers | None
    ) -> None:
        self.node = node
        self.mode = {"bilinear": "linear", "bicubic": "cubic"}.get(
            node.get("mode", "nearest"), node.get("mode", "nearest")
        )
        old = node.operator == "Upsample" or node.opset < _FIRST_RESIZE_WITH_MODES
        self.transform = node.get("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
        self.rounding = node.get("nearest_mode", "floor" if old else "round_prefer_floor")
        self.dims: list[int] = [axis % x.dim() for axis in node.get("axes") or range(x.dim())]
        self.old: list[Any] = [x.shape[dim] for dim in self.dims]
        self.roi = [float(one) for one in as_list(roi)] if roi is not None and roi.size else []
        if scales is not None and scales.size:
            self.scales = [float(one) for one in as_list(scales)]
            self.new = [self._scaled(size, scale) for size, scale in zip(self.old, self.scales, strict=True)]
        elif node.get("scales"):
            self.scales = list(node.get("scales"))
            self.new = [self._scaled(size, scale) for size, scale in zip(self.old, self.scales, strict=True)]
        else:
            self.new, self.scales = self._from_sizes(as_list(sizes) if sizes is not None else self.old)

    @staticmethod
    def _scaled(size: Any, scale: float) -> Any:
        return size * int(scale) if scale == int(scale) else math.floor(size * scale)

    def _from_sizes(self, wanted: list[Any]) -> tuple[list[Any], list[Any]]:
        policy = self.node.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            choose = min if policy == "not_larger" else max
            scale = choose(new / old for new, old in zip(wanted, self.old, strict=True))
            return [math.floor(scale * old + 0.5) for old in self.old], [scale] * len(wanted)
        return wanted, [1.0 if new == old else new / old for new, old in zip(wanted, self.old, strict=True)]

    def changed(self) -> list[int]:
        """Return the positions of dimensions that change, or are cropped."""
        crops = self.transform == "tf_crop_and_resize"
        pairs = enumerate(zip(self.old, self.new, strict=True))
        return [place for place, (old, new) in pairs if crops or new != old]


def _resize(
    node: Node, x: Tensor, roi: Numbers | None = None, scales: Numbers | None = None, sizes: Numbers | None = None
) -> Tensor:
    if node.opset < _FIRST_RESIZE_WITH_MODES or node.operator == "Upsample":
        roi, scales = None, roi  # the second input was scales
    plan = _Plan(node, x, roi, scales, sizes)
    places = plan.changed()
    if not places:
        return x
    native = _torch_mode(plan, x, places)
    if native is not None:
        return F.interpolate(x, _plan_sizes(plan, x), mode=native[0], align_corners=native[1])
    if node.get("antialias", 0):
        raise node.refuse("resizes with antialiasing, which is not supported.")
    for place in places:
        x = _resize_dim(plan, x, place)
    return x


def _plan_sizes(plan: _Plan, x: Tensor) -> list[Any]:
    """Return the new sizes of the spatial dimensions."""
    new = dict(zip(plan.dims, plan.new, strict=True))
    return [new.get(dim, x.shape[dim]) for dim in range(2, x.dim())]


def _torch_mode(plan: _Plan, x: Tensor, places: list[int]) -> tuple[str, bool | None] | None:
    """Return mode and ``align_corners`` of torch's interpolate, if it computes the same."""
    rank = x.dim() - 2
    exact = all(
        not isinstance(plan.new[place], int)
        or not isinstance(plan.old[place], int)
        or abs(plan.old[place] * plan.scales[place] - plan.new[place]) < 1e-6 * plan.new[place]
        for place in places
    )
    if plan.node.get("antialias", 0) or plan.node.get("exclude_outside", 0) or rank not in _SPATIAL_MODES or not exact:
        return None
    if any(plan.dims[place] < 2 for place in places) or not x.is_floating_point():
        return None
    half = plan.transform == "half_pixel" or (
        plan.transform == "pytorch_half_pixel"
        and all(not isinstance(plan.new[place], int) or plan.new[place] > 1 for place in places)
    )
    corners = plan.transform == "align_corners"
    if plan.mode == "nearest":
        floors = plan.transform == "asymmetric" and plan.rounding == "floor"
        doubles = all(
            _is_number(plan.scales[place]) and plan.scales[place] == int(plan.scales[place]) for place in places
        )
        same = floors or (half and doubles and plan.rounding.startswith("round_prefer"))
        return ("nearest", None) if same else None
    if plan.mode == "linear" and (half or corners):
        return _SPATIAL_MODES[rank], corners
    cubic = plan.mode == "cubic" and rank == 2 and plan.node.get("cubic_coeff_a", _CUBIC_OF_TORCH) == _CUBIC_OF_TORCH
    return ("bicubic", corners) if cubic and (half or corners) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _resize_dim(plan: _Plan, x: Tensor, place: int) -> Tensor:
    """Resize one dimension of known size by weighted sums."""
    dim, old, new, scale = plan.dims[place], plan.old[place], plan.new[place], plan.scales[place]
    if not all(map(_is_number, (old, new, scale))):
        raise plan.node.refuse(f"resizes a dynamic dimension in mode {plan.mode}, {plan.transform}: not supported.")
    source = _source_positions(plan, place)
    taps, weights = _taps(plan, source, old)
    outside = (source < 0) | (source > old - 1) if plan.transform == "tf_crop_and_resize" else None
    total: Tensor | None = None
    shape = [-1 if axis == dim else 1 for axis in range(x.dim())]
    for index, weight in zip(taps, weights, strict=True):
        part = x.index_select(dim, torch.tensor(index, device=x.device))
        if plan.mode != "nearest":
            part = part * torch.tensor(weight, dtype=x.dtype, device=x.device).reshape(shape)
        total = part if total is None else total + part
    assert total is not None
    if outside is None or not outside.any():
        return total
    fill = plan.node.get("extrapolation_value", 0.0)
    return torch.where(torch.tensor(outside, device=x.device).reshape(shape), x.new_tensor(fill), total)


def _source_positions(plan: _Plan, place: int) -> NDArray[np.float64]:
    """Return the position in the input for each element of the result."""
    old, new, scale = float(plan.old[place]), int(plan.new[place]), float(plan.scales[place])
    positions: NDArray[np.float64] = np.arange(new, dtype=np.float64)
    match plan.transform:
        case "half_pixel":
            return (positions + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (positions + 0.5) / scale - 0.5 if new > 1 else np.zeros(1)
        case "half_pixel_symmetric":
            return old / 2 * (1 - new / (scale * old)) + (positions + 0.5) / scale - 0.5
        case "align_corners":
            return positions * (old - 1) / (new - 1) if new > 1 else np.zeros(1)
        case "asymmetric":
            return positions / scale
        case "tf_half_pixel_for_nn":
            return (positions + 0.5) / scale
        case "tf_crop_and_resize":
            count = len(plan.roi) // 2
            start, end = plan.roi[place], plan.roi[place + count]
            if new == 1:
                return np.array([0.5 * (start + end) * (old - 1)])
            return start * (old - 1) + positions * (end - start) * (old - 1) / (new - 1)
    raise plan.node.refuse(f"has the coordinate mode '{plan.transform}', which is not known.")


def _taps(plan: _Plan, source: NDArray[np.float64], size: int) -> tuple[list[NDArray[np.int64]], list[NDArray[Any]]]:
    """Return the elements that are summed, and their weights."""
    base = np.floor(source)
    part = source - base
    if plan.mode == "nearest":
        rounded = {
            "floor": base,
            "ceil": np.ceil(source),
            "round_prefer_floor": np.ceil(source - 0.5),
            "round_prefer_ceil": np.floor(source + 0.5),
        }[plan.rounding]
        return [np.clip(rounded, 0, size - 1).astype(np.int64)], [np.ones_like(source)]
    if plan.mode == "linear":
        offsets, weights = [0, 1], [1 - part, part]
    else:
        a = plan.node.get("cubic_coeff_a", _CUBIC_OF_TORCH)
        offsets = [-1, 0, 1, 2]
        weights = [_cubic(np.abs(part - offset), a) for offset in offsets]
    places = [base + offset for offset in offsets]
    if plan.node.get("exclude_outside", 0):
        inside = [(place >= 0) & (place < size) for place in places]
        weights = [np.where(keep, weight, 0) for keep, weight in zip(inside, weights, strict=True)]
        total = sum(weights)
        weights = [weight / total for weight in weights]
    return [np.clip(place, 0, size - 1).astype(np.int64) for place in places], weights


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Return the weights of Keys' cubic convolution (Keys 1981, "Cubic convolution interpolation")."""
    near: NDArray[np.float64] = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    return F.grid_sample(x, grid, mode, node.get("padding_mode", "zeros"), bool(node.get("align_corners", 0)))


def _affine_grid(node: Node, theta: Tensor, size: Numbers) -> Tensor:
    return F.affine_grid(theta, as_list(size), bool(node.get("align_corners", 0)))


TABLE: dict[str, Operator] = {
    "Resize": Operator(_resize, numbers=(1, 2, 3)),
    "Upsample": Operator(_resize, numbers=(1, 2, 3)),
    "GridSample": Operator(_grid_sample),
    "AffineGrid": Operator(_affine_grid, numbers=(1,)),
}
