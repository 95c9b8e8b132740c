"""ATen's core operators, and what pruning does with the channels of each: a test asks for a decision on every one."""

from __future__ import annotations

from typing import Any, Literal

import torch

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.rules import RULES, frozen, is_element_wise
from edgeopt.passes.tracing import native_norms

Decision = Literal["rule", "element-wise", "freezes by nature", "rewritten"]


def core_operators() -> dict[str, Any]:
    """Return PyTorch's core operators by name: those with an overload that has torch's tag ``core``."""
    full_names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    names = {name.removeprefix("aten::").partition(".")[0] for name in full_names}
    packets = {name: getattr(aten, name) for name in sorted(names)}
    return {name: packet for name, packet in packets.items() if _has_core_overload(packet)}


def _has_core_overload(packet: Any) -> bool:
    return any(torch.Tag.core in getattr(packet, overload).tags for overload in packet.overloads())


def decision_on(packet: Any) -> Decision | None:
    """Return what is decided for an operator; None if nothing is, so that it freezes channels without a reason."""
    if packet in frozen.RULES:
        return "freezes by nature"
    if packet in RULES:
        return "rule"
    if is_element_wise(packet):
        return "element-wise"
    return "rewritten" if packet in native_norms.PLAIN else None


def decided_core_operators() -> dict[str, Decision | None]:
    """Return the decision on each of PyTorch's core operators, by name; None if there is none."""
    return {name: decision_on(packet) for name, packet in core_operators().items()}
