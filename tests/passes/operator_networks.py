"""The smallest networks with the operators of one family: each lets the channels of a layer through to the next."""

from collections.abc import Callable

import torch
from rule_networks import Case, images, parameter
from torch import Tensor, nn
from torch.nn import functional as F

L, C = nn.Linear, nn.Conv2d


def whole_vectors(m, x):
    y = m.a(x).sigmoid().unsqueeze(1)  # a lost channel is not zero
    return m.o(torch.cat([kernel(y).squeeze(3).amax(2) for kernel in (m.b, m.c)], 1))


def convolved_each(m, x):
    """The modulated convolution of StyleGAN2."""
    y, batch = m.a(x).sigmoid(), x.shape[0]
    weight = m.weight * m.style(x.mean((2, 3))).view(batch, 1, 12, 1, 1)
    weight = weight * torch.rsqrt(weight.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
    y = F.conv2d(y.reshape(1, batch * 12, 8, 8), weight.view(batch * 8, 12, 3, 3), padding=1, groups=batch)
    return m.o(y.view(batch, 8, 8, 8).relu())


ROWS = torch.tensor([0, 2, 5])


def each(*operators: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Sum of the results of several operators on the same input."""
    return lambda y: sum(operator(y) for operator in operators)


def scattered(y: Tensor) -> Tensor:
    index = ROWS.view(1, 3, 1).expand(y.shape[0], 3, 12)
    return (
        y.scatter(1, index, y[:, :3]).scatter_add(1, index, y[:, 1:4])
        + y.scatter_reduce(1, index, y[:, :3], "amax")
        + y.scatter(1, index, 2.0)
    )


def written_by_index(y: Tensor) -> Tensor:
    z = y.index_add(1, ROWS, y[:, :3]).index_copy(1, ROWS, y[:, 2:5]).index_fill(1, ROWS[:1], 0.5)
    z = z.index_put((torch.arange(y.shape[0])[:, None], ROWS), y[:, :3], accumulate=True)
    z[:, ROWS] = y[:, 1:4]
    return z


def written_slices(y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[:, 1:4] = y[:, :3]
    z[:, 5] = y[:, 6]
    z = torch.slice_scatter(z, y[:, :2], 1, 5, 7)
    return torch.select_scatter(z, y[:, 0], 1, 4)


def halves_written(m, x):
    y = x.new_zeros(x.shape[0], 7, 24)
    y[..., :12] = m.a(x)
    y[..., 12:] = m.b(x).relu()
    return m.o(torch.slice_scatter(y, m.b(x), -1, 12, 24))


def mask_tokens(m, x):
    y = m.a(x)
    hidden = x[..., 0] > 0
    y = torch.where(hidden[..., None], y, y.masked_fill(~hidden[..., None], 0.5))
    y = y.index_put((hidden,), m.token)
    return m.o(y.masked_scatter((x[..., :1] > 1).expand_as(y), m.a(x).flatten(0, 1)))


def bits(m, x):
    y = m.a(x)
    near = (y > 0).__and__(y < 1) | (y > 2) ^ ~(y < -1)
    near &= y < 3
    return m.o(y * near + y * torch.logical_or(near, y.isnan()).float())


def filtered(m, x):
    """A global filter over the positions of each channel."""
    y = m.a(x)
    spectrum = torch.fft.rfft2(y, norm="ortho") * torch.view_as_complex(m.filter)
    return m.o(torch.fft.irfft2(spectrum, s=(8, 8), norm="ortho"))


def rotated(m, x):
    """Rotary positions by complex numbers: pairs of channels go together."""
    q, k, v = (part.view(*part.shape[:2], 4, -1).transpose(1, 2) for part in m.qkv(x).split(48, -1))
    angle = torch.polar(torch.ones(7, 6), torch.outer(torch.arange(7).float(), m.frequency))

    def rotate(part):
        pairs = torch.view_as_complex(part.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * angle).flatten(-2)

    return m.o(F.scaled_dot_product_attention(rotate(q), rotate(k), v).transpose(1, 2).flatten(2))


def complex_weights(m, x):
    """A Fourier layer with complex weights that mix channels."""
    spectrum = torch.fft.rfft(m.a(x).transpose(1, 2))
    mixed = torch.einsum("bik,iok->bok", spectrum, m.weight)
    return m.o(torch.fft.irfft(mixed, n=7).transpose(1, 2))


def spectrogram(m, x):
    y = m.a(x)
    window = torch.hann_window(8)
    z = torch.stft(y.flatten(0, 1), 8, 4, window=window, return_complex=True)
    back = torch.istft(z, 8, 4, window=window).view(y.shape[0], 12, -1)
    return m.o(z.abs().square().view(y.shape[0], 12, 5, -1).mean(2) + back[..., :1])


def distances(m, x):
    y, z = m.a(x), m.b(x)
    d = torch.cdist(y, z) + torch.cdist(y, m.centres)
    near = F.cosine_similarity(y, z, -1) + F.pairwise_distance(y, z) + (y - z).norm(dim=-1)
    similarity = F.cosine_similarity(y[:, :, None], m.centres, -1)
    return m.o(d + similarity) * near[..., None]


def products(m, x):
    y, z = m.a(x), m.b(x)
    gram = torch.tensordot(y, m.table, dims=([2], [1])) + torch.inner(y, m.table)
    row = torch.addmv(m.bias, m.table, z[0, 0])
    plane = torch.addbmm(m.plane, y.transpose(1, 2), z)
    plane = torch.addr(plane, m.row, m.row).sigmoid()
    return m.o(gram + row) + m.p(z @ plane)


def largest(m, x):
    y = m.a(x)
    gate = torch.cat([torch.max(y, 1, keepdim=True)[0], y.min(1, keepdim=True).values], 1)
    low, high = torch.aminmax(y, dim=1, keepdim=True)
    y = y * m.gate(gate).sigmoid() / (high - low) * y.max()
    return m.o(
        y * y.prod(1, keepdim=True).tanh() + torch.var_mean(y, 1, keepdim=True)[0] + y.logsumexp(1, keepdim=True)
    )


def pooled_and_back(m, x):
    y = m.a(x)
    z, indices = F.max_pool2d(y, 2, return_indices=True)
    w, places = F.adaptive_max_pool2d(y, 4, return_indices=True)
    v, _ = F.fractional_max_pool2d(y, 2, output_size=4, return_indices=True)
    return m.o(F.max_unpool2d(m.b(z + v), indices, 2) + F.max_unpool2d(w, places, 2))


def blurred(m, x):
    y = F.conv2d(m.a(x), m.kernel.repeat(12, 1, 1, 1), groups=12)
    return m.o(F.conv2d(y, m.kernel.expand(12, 1, 3, 3), groups=12))


def spatial_transformer(m, x):
    theta = m.b(x.mean((2, 3))).view(-1, 2, 3)
    grid = F.affine_grid(theta, [x.shape[0], 3, 8, 8], align_corners=False)
    return m.o(F.grid_sample(m.a(x), grid, align_corners=False))


def grouped_linear(m, x):
    return m.o(torch.einsum("btgi,gio->btgo", m.a(x).unflatten(-1, (4, 6)), m.weight).flatten(-2) + m.bias)


def diagonals(m, x):
    y = m.a(x)
    matrix = torch.diag_embed(y) + y[..., None] * y[..., None, :]
    return m.o(matrix.diagonal(dim1=-2, dim2=-1) * torch.einsum("bij->bi", matrix.flatten(0, 1)).view_as(y))


def bags(m, x):
    words = (x[..., 0] * 3).long().abs() % 10
    return m.o(F.embedding_bag(words, m.words) + F.embedding_bag(words, m.words, mode="max"))


def with_noise(m, x):
    y = m.a(x)
    y = y + 0.1 * torch.randn_like(y) * torch.rand(x.shape[0], 1, 12)
    return m.o(y + torch.empty_like(y).uniform_())


def vector_quantized(m, x):
    y = m.a(x)
    nearest = F.embedding(torch.cdist(y, m.book).argmin(-1), m.book)
    return m.o(y + (nearest - y).detach())


def graph_attention(m, x):
    y, (source, target) = m.a(x), m.edges
    weight = F.leaky_relu(m.attention(torch.cat([y[:, source], y[:, target]], -1))).exp()
    index = target.view(1, -1, 1).expand(x.shape[0], -1, 12)
    total = torch.zeros(x.shape[0], 7, 12).scatter_add(1, index, weight * y[:, source])
    degree = torch.zeros(x.shape[0], 7, 1).index_add_(1, target, weight)
    return m.o(total / (degree + 1e-6))


def nearest_neighbours(m, x):
    y = m.a(x)
    places = torch.cdist(y, y).topk(3, -1, largest=False)[1] + torch.arange(x.shape[0]).view(-1, 1, 1) * 7
    near = y.reshape(-1, 12)[places.view(-1)].view(-1, 7, 3, 12)
    return m.o(torch.cat([near - y[:, :, None], y[:, :, None].repeat(1, 1, 3, 1)], -1)).max(2)[0]


def state_space(m, x):
    u = m.a(x).transpose(1, 2)
    rate = torch.complex(-m.rate.exp(), m.rate)
    kernel = torch.einsum("hn,hnl->hl", m.weight * rate, torch.exp(rate[..., None] * torch.arange(7))).real
    spectrum = torch.fft.rfft(u, n=14) * torch.fft.rfft(kernel, n=14)
    return m.o(torch.fft.irfft(spectrum, n=14)[..., :7].transpose(1, 2))


def rewritten_in_place(m, x):
    y = m.a(x)
    y.mul_(2).add_(1)
    y[:, 0] += 1
    y[..., :6] *= 2
    y[:, 1:3] = 0
    y[y > 2] = 2.0
    return m.o(y.clamp_(max=3).unsqueeze_(1).squeeze_(1))


def regulated_lengths(m, x):
    y = m.a(x).repeat_interleave(m.durations, 1)
    first, second = torch.tensor_split(y, torch.tensor([4]), 1)
    mantissa, exponent = torch.frexp(torch.cat([second, first], 1))
    return m.o(mantissa * exponent)


def tokens_mixed(m, x):
    """Spatial gating: a convolution of width 1 whose channels are tokens, over the features as positions."""
    u, v = F.gelu(m.a(x)).chunk(2, -1)
    return m.o(u * m.mix(m.norm(v)))


def by_other_names(m, x):
    y = m.a(x)
    y = torch.multiply(torch.subtract(y, 1), 2).divide_(3).arctan()
    y = torch.concatenate([y, y.fliplr().rot90(2, (0, 1)).flipud()], 1)
    y = torch.vstack([y, y]).reshape_as(torch.cat([y, y])).chunk(2)[0].contiguous()
    one, other = torch.broadcast_tensors(y, y[:, :1])
    return m.o(torch.hstack([one, other])) + m.p(torch.take_along_dim(y, y.argsort(1), 1).diff(dim=1)).sum(1, True)


def along_positions(y: Tensor) -> Tensor:
    z = y.cumsum(1) + y.tanh().cumprod(1) + y.cummax(1)[0] + y.cummin(1).values + y.logcumsumexp(1)
    z = z + y.sort(1)[0] + y.topk(7, 1)[0] + y.roll(1, 1) + y.flip(1) + torch.rot90(y, 2, (0, 1))
    return z + y.median(1, True)[0] + y.kthvalue(2, 1, True)[0] + y.quantile(0.3, 1, True) + y.nansum(1, True)


def element_wise(y: Tensor) -> Tensor:
    z = F.logsigmoid(y) + (1 - y) + y.detach().floor_divide(0.5) + torch.isclose(y, y.round(), 0.1)
    z = z + torch.bucketize(y, torch.tensor([-1.0, 0.0, 1.0])) + y.clone().mul_(2).clamp_min_(0)
    return z + torch.isin(y.round(), torch.tensor([0.0, 1.0])) + y.nan_to_num().lerp(y.exp(), 0.3)


PIXELS: dict[str, Callable[[Tensor], Tensor]] = {
    "up-sampling": lambda y: torch.cat(
        [
            F.interpolate(y, scale_factor=2, mode=mode)
            for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")
        ]
        + [F.interpolate(y, (16, 16), mode=mode, antialias=True) for mode in ("bilinear", "bicubic")],
        2,
    ),
    "windows by hand": lambda y: y.unfold(2, 3, 2).unfold(3, 3, 2).mean((-1, -2)),
    "pixel shuffles": lambda y: F.pixel_shuffle(F.pixel_unshuffle(y, 2), 2),
    "pools": lambda y: F.adaptive_avg_pool2d(y, 3) + F.lp_pool2d(y, 2, 3, 2) + F.adaptive_max_pool2d(y, 3),
    "norms": lambda y: F.instance_norm(y) + F.group_norm(y, 12) + F.normalize(y, dim=1) + y.var((2, 3), keepdim=True),
}
SEQUENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "along positions": along_positions,
    "element-wise": element_wise,
    "scatter": scattered,
    "written by index": written_by_index,
    "written slices": written_slices,
    "pools over a sequence": lambda y: (
        F.max_pool1d(y.mT, 3, 2).mT + F.adaptive_avg_pool1d(y.mT, 3).mT + F.avg_pool1d(y.mT, 3, 2).mT
    ),
}

PIXEL_PARTS = {"a": C(3, 12, 1), "o": C(12, 2, 1)}

ACROSS: dict[str, Case] = {
    **{
        name: Case(lambda m, x, op=op: m.o(op(m.a(x))), PIXEL_PARTS, {"a": 12}, images(3, 8, 8))
        for name, op in PIXELS.items()
    },
    **{
        name: Case(lambda m, x, op=op: m.o(op(m.a(x))), {"a": L(5, 12), "o": L(12, 2)}, {"a": 12})
        for name, op in SEQUENCES.items()
    },
    "halves that are written": Case(halves_written, {"a": L(5, 12), "b": L(5, 12), "o": L(24, 3)}, {"a": 12, "b": 12}),
    "mask tokens": Case(mask_tokens, {"a": L(5, 12), "token": parameter(12), "o": L(12, 3)}, {"token": 12}),
    "bits": Case(bits, {"a": L(5, 12), "o": L(12, 3)}, {"a": 12}),
    "global filter": Case(
        filtered,
        {"a": C(3, 12, 1), "filter": parameter(12, 8, 5, 2), "o": C(12, 2, 1)},
        {"filter": 12},
        images(3, 8, 8),
    ),
    "complex rotary positions": Case(
        rotated, {"qkv": L(5, 144), "o": L(48, 3), "frequency": torch.rand(6)}, {"qkv": 6, "qkv#2": 12}
    ),
    "complex weights": Case(
        complex_weights,
        {"a": L(5, 12), "weight": nn.Parameter(torch.randn(12, 8, 4, dtype=torch.cfloat)), "o": L(8, 3)},
        {"weight": 12, "weight:1": 8},
    ),
    "spectrogram": Case(
        spectrogram,
        {"a": nn.Conv1d(2, 12, 1), "o": nn.Conv1d(12, 3, 1)},
        {"a": 12},
        (torch.randn(4, 2, 32),),
    ),
    "distances": Case(
        distances, {"a": L(5, 12), "b": L(5, 12), "centres": parameter(7, 12), "o": L(7, 3)}, {"centres:1": 12}
    ),
    "products": Case(
        products,
        {
            "a": L(5, 12),
            "b": L(5, 12),
            "table": parameter(8, 12),
            "bias": parameter(8),
            "plane": parameter(12, 12),
            "row": parameter(12),
            "o": L(8, 3),
            "p": L(12, 3),
        },
        {"table": 8, "plane": 12},
    ),
    "largest channel": Case(
        largest, {"a": C(3, 12, 1), "gate": C(2, 1, 3, padding=1), "o": C(12, 2, 1)}, {"a": 12}, images(3, 8, 8)
    ),
    "pooled and back": Case(
        pooled_and_back,
        {"a": C(3, 12, 1), "b": C(12, 12, 3, padding=1, groups=12), "o": C(12, 2, 1)},
        {"a": 12},
        images(3, 8, 8),
    ),
    "blurred": Case(
        blurred, {"a": C(3, 12, 1), "kernel": torch.rand(1, 1, 3, 3), "o": C(12, 2, 1)}, {"a": 12}, images(3, 8, 8)
    ),
    "spatial transformer": Case(
        spatial_transformer, {"a": C(3, 12, 1), "b": L(3, 6), "o": C(12, 2, 1)}, {"a": 12}, images(3, 8, 8)
    ),
    "grouped linear": Case(
        grouped_linear,
        {"a": L(5, 24), "weight": parameter(4, 6, 8), "bias": parameter(32), "o": L(32, 3)},
        {"weight:1": 6, "weight:2": 8},
    ),
    "diagonals": Case(diagonals, {"a": L(5, 12), "o": L(12, 3)}, {"a": 12}),
    "bags of words": Case(bags, {"words": parameter(10, 12), "o": L(12, 3)}, {"words:1": 12}),
    "vector quantization": Case(
        vector_quantized, {"a": L(5, 12), "book": parameter(20, 12), "o": L(12, 3)}, {"book:1": 12}
    ),
    "graph attention": Case(
        graph_attention,
        {"a": L(5, 12), "attention": L(24, 1), "edges": torch.randint(0, 7, (2, 15)), "o": L(12, 3)},
        {"a": 12},
    ),
    "nearest neighbours": Case(nearest_neighbours, {"a": L(5, 12), "o": L(24, 3)}, {"a": 12}),
    "state space": Case(
        state_space,
        {"a": L(5, 12), "rate": parameter(12, 4), "weight": parameter(12, 4), "o": L(12, 3)},
        {"rate": 12, "rate:1": 4},
    ),
    "in place": Case(rewritten_in_place, {"a": L(5, 12), "o": L(12, 3)}, {"a": 6, "a#2": 6}),  # neither half is emptied
    "lengths from a tensor": Case(
        regulated_lengths, {"a": L(5, 12), "durations": torch.tensor([1, 2, 0, 3, 1, 0, 2]), "o": L(12, 3)}, {"a": 12}
    ),
    "mixed tokens": Case(
        tokens_mixed,
        {"a": L(5, 24), "norm": nn.LayerNorm(12), "mix": nn.Conv1d(7, 7, 1), "o": L(12, 3)},
        {"a": 12},
    ),
    "kernels over whole vectors": Case(
        whole_vectors,
        {"a": L(5, 12), "b": C(1, 8, (3, 12)), "c": C(1, 6, (2, 12)), "o": L(14, 3)},
        {"a": 12, "b": 8, "c": 6},
    ),
    "a kernel for each sample": Case(
        convolved_each,
        {"a": C(3, 12, 1), "style": L(3, 12), "weight": parameter(1, 8, 12, 3, 3), "o": C(8, 2, 1)},
        {"weight:1": 8, "weight:2": 12},
        images(3, 8, 8),
    ),
    "noise": Case(with_noise, {"a": L(5, 12), "o": L(12, 3)}, {"a": 12}),
    "other names": Case(by_other_names, {"a": L(5, 12), "o": L(12, 3), "p": L(12, 3)}, {"a": 12}),
}


class WritesBehindAView(nn.Module):
    """A value that is written to after a view of it was taken."""

    def forward(self, x):
        y = torch.softmax(x, -1)
        view = y.view(-1)
        y.masked_fill_(x > 1, 0)
        return view * 2
