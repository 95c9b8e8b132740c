"""``aten``: PyTorch's own operators, which make up a traced network."""

from typing import Any

import torch

aten = torch.ops.aten


def plain_form(packet: Any) -> Any:
    """Return the operator that computes the same without writing in place and without a copy of its own.

    ``add`` for ``add_``, ``permute`` for ``permute_copy``; any other operator is its own plain form.
    """
    name = packet.__name__
    plain = name.removesuffix("_copy") if name.endswith("_copy") else name.removesuffix("_")
    return getattr(aten, plain, packet) if plain != name and not name.startswith("__") else packet
