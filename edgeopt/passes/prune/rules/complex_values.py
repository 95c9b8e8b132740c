"""Complex numbers and Fourier transforms: real and imaginary part are one more dimension, which stays."""

from __future__ import annotations

from typing import Any

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.labels import Labels
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.elementwise import elementwise, make_independent

_PARTS = "real and imaginary part"
_FREQUENCIES = "a Fourier transform mixes these"


def view_as_real(labels: Labels, call: Call) -> Layers:
    """Add a dimension of size 2: real and imaginary part."""
    del labels
    return tuple(layer.unsqueeze(-1) for layer in call.input.layers)


def view_as_complex(labels: Labels, call: Call) -> Layers:
    """Drop the last dimension, of size 2."""
    last = len(call.input.shape) - 1
    return tuple(layer.squeeze(last) for layer in make_independent(labels, call.input.layers, {last}, _PARTS))


def transform(labels: Labels, call: Call) -> Layers:
    """Transform along ``dim``; the other dimensions pass."""
    ndim = len(call.input.shape)
    return make_independent(labels, call.input.layers, {int(dim) % ndim for dim in call["dim"]}, _FREQUENCIES)


def short_time_transform(labels: Labels, call: Call) -> Layers:
    """Turn signals ``[..., samples]`` into spectrograms ``[..., frequencies, frames]``, perhaps as pairs of numbers."""
    call.freeze_others(labels)
    last = len(call.input.shape) - 1
    layers = make_independent(labels, call.input.layers, {last}, _FREQUENCIES)
    return tuple(layer.reshape([*layer.shape[:last], *[1] * (len(call.shape) - last)]) for layer in layers)


def inverse_short_time_transform(labels: Labels, call: Call) -> Layers:
    """Turn spectrograms ``[..., frequencies, frames]`` of complex numbers into signals ``[..., samples]``."""
    call.freeze_others(labels)
    last = len(call.shape) - 1
    layers = make_independent(labels, call.input.layers, set(range(last, len(call.input.shape))), _FREQUENCIES)
    return tuple(layer.reshape([*layer.shape[:last], 1]) for layer in layers)


RULES: dict[Any, Rule] = {
    aten.view_as_real: view_as_real,
    aten.view_as_complex: view_as_complex,
    **dict.fromkeys((aten.complex, aten.polar, aten._conj, aten._conj_physical, aten.conj_physical), elementwise),
    **dict.fromkeys((aten._fft_r2c, aten._fft_c2r, aten._fft_c2c), transform),
    aten.stft: short_time_transform,
    aten.istft: inverse_short_time_transform,
}
