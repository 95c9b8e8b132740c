"""The zoo, traced and analysed once per test session."""

from functools import cache

import torch
from torch import Tensor

from benchmarks.zoo import ZOO
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups, analyse

RATIOS = (0.3, 0.5)


@cache
def traced(name: str) -> tuple[Network, Groups]:
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    network = Network.trace(model, inputs)
    return network, analyse(network)


def random_keep(groups: Groups, ratio: float, seed: int) -> dict[str, list[int]]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(group.channels, generator=random)[
            : max(group.least, round(group.channels * (1 - ratio)))
        ].tolist()
        for name, group in groups.free.items()
    }


def with_batch(example: Tensor, batch: int, random: torch.Generator) -> Tensor:
    """Return random inputs like an example: numbers, or indices no larger than its own."""
    shape = (batch, *example.shape[1:])
    if example.is_floating_point():
        return torch.randn(shape, generator=random)
    return torch.randint(int(example.max()) + 1, shape, generator=random)


def tensors_in(outputs) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    items = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for item in items for tensor in tensors_in(item)]
