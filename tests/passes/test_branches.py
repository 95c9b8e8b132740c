"""Sums of parallel branches, merged into one convolution each: in the graph, with the proof, saved and loaded."""

import copy

import pytest
import torch
from torch import nn

from edgeopt.errors import ParityError
from edgeopt.passes.aten import aten
from edgeopt.passes.branches import affine
from edgeopt.passes.branches.proof import verify_merge
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.proof import verify_pruning
from edgeopt.passes.prune.rewrite import prune

FLOAT32_SUMS = 1e-5
"""Sums of some thousand float32 products, in another order."""


def conv_norm(channels, out, kernel, stride=1, groups=1, dilation=1, bias=False):
    padding = [dilation * (size - 1) // 2 for size in (kernel if isinstance(kernel, tuple) else (kernel, kernel))]
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=bias), nn.BatchNorm2d(out)
    )


class Branches(nn.Module):
    """The sum of branches, summed as Python's ``sum`` does, then a ReLU."""

    def __init__(self, *modules):
        super().__init__()
        self.branches = nn.ModuleList(modules)

    def forward(self, x):
        return torch.relu(sum(branch(x) for branch in self.branches))


class InPlace(Branches):
    def forward(self, x):
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total += branch(x)
        return total


class Stacked(Branches):
    """The sum of a stack, as some write it."""

    def __init__(self, *modules, dim=0):
        super().__init__(*modules)
        self.dim = dim

    def forward(self, x):
        return torch.stack([branch(x) for branch in self.branches], self.dim).sum(self.dim)


class Crossed(Stacked):
    def forward(self, x):
        return torch.stack([branch(x) for branch in self.branches], 0).sum(1)


class Mixer(nn.Module):
    """FastViT's token mixer: the input plus a scaled difference of two linear branches."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.depthwise, self.scale = conv_norm(width, width, 3, groups=width), conv_norm(width, width, 1, groups=width)
        self.skip = nn.BatchNorm2d(width)
        self.layer_scale = nn.Parameter(torch.rand(width))

    def forward(self, x):
        mixed = self.depthwise(x) + self.scale(x) + self.skip(x)
        return x + self.layer_scale.unsqueeze(-1).unsqueeze(-1) * (mixed - self.norm(x))


class PositionalEncoding(nn.Module):
    """A depthwise convolution that is added to its input."""

    def __init__(self, width, bias=True):
        super().__init__()
        self.proj = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=bias)

    def forward(self, x):
        return self.proj(x) + x


class NormAfterSum(nn.Module):
    """Asymmetric convolutions without norms, and a norm of their sum."""

    def __init__(self, width):
        super().__init__()
        self.square = nn.Conv2d(width, width, 3, padding=1)
        self.high = nn.Conv2d(width, width, (3, 1), padding=(1, 0))
        self.wide = nn.Conv2d(width, width, (1, 3), padding="same")
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return self.norm(self.square(x) + self.high(x) + self.wide(x)).relu_()


class Signals(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.long = nn.Sequential(nn.Conv1d(width, width, 9, padding=4, bias=False), nn.BatchNorm1d(width))
        self.short = nn.Sequential(nn.Conv1d(width, width, 3, padding=1, bias=False), nn.BatchNorm1d(width))

    def forward(self, x):
        x = x.flatten(2)
        return self.long(x) + self.short(x) * 2


def around(block):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), block, nn.Flatten(2), nn.AdaptiveAvgPool1d(1))


MERGED = {
    "RepVGG": lambda: Branches(conv_norm(8, 8, 3), conv_norm(8, 8, 1), nn.BatchNorm2d(8)),
    "RepVGG with stride": lambda: Branches(conv_norm(8, 12, 3, 2), conv_norm(8, 12, 1, 2)),
    "MobileOne": lambda: InPlace(
        *(conv_norm(8, 8, 3, groups=8) for _ in range(4)), conv_norm(8, 8, 1, groups=8), nn.BatchNorm2d(8)
    ),
    "pointwise copies": lambda: Branches(*(conv_norm(8, 12, 1) for _ in range(3))),
    "a stack": lambda: Stacked(conv_norm(8, 8, 3), conv_norm(8, 8, 1), nn.BatchNorm2d(8)),
    "a stack along its last dimension": lambda: Stacked(conv_norm(8, 8, 3), conv_norm(8, 8, 1), dim=-1),
    "large kernel": lambda: Branches(conv_norm(8, 8, 13, groups=8), conv_norm(8, 8, 5, groups=8)),
    "dilated": lambda: Branches(conv_norm(8, 8, 9, groups=8), conv_norm(8, 8, 3, groups=8, dilation=3)),
    "groups in a dense one": lambda: Branches(conv_norm(8, 8, 3, groups=2), conv_norm(8, 8, 1, groups=4)),
    "norm after the sum": lambda: NormAfterSum(8),
    "scaled difference": lambda: Mixer(8),
    "added to its input": lambda: PositionalEncoding(8),
    "without a bias": lambda: PositionalEncoding(8, bias=False),
    "a bias from another branch": lambda: Branches(
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False)
    ),
    "one dimension": lambda: Signals(8),
}


def images(batch=4, size=12):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def trained(block):
    """A network whose norms have seen data and whose parameters are all different."""
    torch.manual_seed(0)
    model = around(block)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    for _ in range(3):
        model(torch.randn(8, 3, 12, 12))
    return model.eval()


def count(network, *packets):
    return sum(getattr(node.target, "overloadpacket", None) in packets for node in network.eval_module.graph.nodes)


@pytest.mark.parametrize("kind", MERGED)
def test_parallel_branches_become_one_convolution_that_computes_the_same(kind):
    model = trained(MERGED[kind]())
    network = Network.trace(model, (images(),))
    merged = network.merge_branches((images(),))
    assert merged.merged_sums == 1
    assert verify_merge(network, merged, (images(),)) < 1e-12
    assert count(merged, aten.conv1d, aten.conv2d) == 2
    assert count(merged, aten.add, aten.add_, aten.sub, aten.mul, aten.sum) == 0
    with torch.no_grad():
        expected, found = model(images(3, 16)), merged.eval_module(images(3, 16))
    assert float((expected - found).abs().max() / expected.abs().max()) < FLOAT32_SUMS
    assert set(merged.state()) <= set(network.state()) | {"2.branches.0.bias"}


def test_merged_branches_keep_a_batch_norm_that_leaves_training_where_it_was():
    model = trained(MERGED["RepVGG"]())
    merged = Network.trace(model, (images(),)).merge_branches((images(16),))
    assert count(merged, aten.batch_norm) == 1
    with torch.no_grad():
        expected, found = merged.eval_module(images(16)), merged.train_module(images(16))
    assert float((expected - found).abs().max() / expected.abs().max()) < 1e-2  # batch norm counts samples minus one


class Nested(nn.Module):
    def __init__(self, *, also_read=False, shared=False, kernels=((3, 1), (1, 3))):
        super().__init__()
        self.one, self.other = (conv_norm(8, 8, kernel) for kernel in kernels)
        self.also_read, self.shared = also_read, shared

    def forward(self, x):
        one = self.one(x)
        y = one + self.other(x)
        if self.shared:
            y = y.relu()
            y = self.one(y) + self.other(y)
        return torch.cat([y, one], 1) if self.also_read else y


class Mutating(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = conv_norm(8, 8, 3), conv_norm(8, 8, 1)

    def forward(self, x):
        one = self.one(x)
        x.mul_(2)
        return one + self.other(x)


NOT_MERGED = {
    "neither kernel covers the other": Nested(),
    "a branch is read elsewhere": Nested(also_read=True, kernels=(3, 1)),
    "layers that run twice": Nested(shared=True, kernels=(3, 1)),
    "the input changes in between": Mutating(),
    "dense in a depthwise one": Branches(conv_norm(8, 8, 3, groups=8), conv_norm(8, 8, 1)),
    "different strides": Branches(conv_norm(8, 8, 3, 2), nn.Sequential(nn.MaxPool2d(2), conv_norm(8, 8, 1))),
    "a stack that is summed along another dimension": Crossed(conv_norm(8, 8, 3), conv_norm(8, 8, 1)),
    "only a norm": Branches(nn.BatchNorm2d(8), nn.Identity()),
    "a norm after a sum that is not merged": nn.Sequential(Nested(), nn.BatchNorm2d(8)),
    "a residual block": Branches(nn.Sequential(conv_norm(8, 8, 3), nn.ReLU(), conv_norm(8, 8, 3)), nn.Identity()),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_MERGED)
def test_other_sums_stay_as_they_are(kind):
    network = Network.trace(trained(copy.deepcopy(NOT_MERGED[kind])), (images(),))
    assert network.merge_branches((images(),)) is network


def test_a_merged_network_is_pruned_layer_by_layer_saved_and_loaded(tmp_path):
    block = nn.Sequential(MERGED["RepVGG"](), MERGED["RepVGG"]())
    network = Network.trace(trained(block), (images(),))
    merged = network.merge_branches((images(),))
    assert len(analyse(merged).free) == len(analyse(network).free) + 2  # the norm of the input ties a block's two sides
    groups = analyse(merged)
    keep = {name: range(group.channels // 2) for name, group in groups.free.items()}
    pruned = prune(merged, groups, keep)
    verify_pruning(merged, groups, keep, pruned, (images(),))
    pruned.save(tmp_path / "pruned.safetensors")
    for original in (network, merged):
        loaded = Network.load(tmp_path / "pruned.safetensors", original)
        assert loaded.merged_sums == 2
        assert torch.equal(loaded.eval_module(images()), pruned.eval_module(images()))


def test_a_wrong_merge_is_caught_by_the_proof(monkeypatch):
    right = affine.fit_kernel

    def shifted(branch, main):
        fitted = right(branch, main)
        return None if fitted is None else fitted.roll(1, -1)

    monkeypatch.setattr(affine, "fit_kernel", shifted)
    network = Network.trace(trained(MERGED["RepVGG"]()), (images(),))
    with pytest.raises(ParityError, match=r"merge branches: node 'relu_1' differs by .* in float64"):
        verify_merge(network, network.merge_branches((images(),)), (images(),))


class OfBytes(nn.Module):
    """A network behind the bytes of an image."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.float() / 255)


def test_a_network_that_casts_to_float32_is_merged_and_proven():
    x = (255 * images().sigmoid()).to(torch.uint8)
    network = Network.trace(OfBytes(trained(MERGED["RepVGG"]())).eval(), (x,))
    merged = network.merge_branches((x,))
    assert merged.merged_sums == 1
    assert verify_merge(network, merged, (x,)) < 1e-12
