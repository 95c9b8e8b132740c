"""Text: state spaces, long convolutions, experts, recurrences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Architecture, Built

VOCABULARY, LENGTH, WIDTH = 200, 16, 64


def tokens() -> Tensor:
    """Return two sequences."""
    return torch.randint(VOCABULARY, (2, LENGTH))


class Decoder(nn.Module):
    """An embedding, residual blocks with norm in front, logits of tokens."""

    def __init__(self, *mixers: nn.Module) -> None:
        super().__init__()
        self.embed, self.mixers = nn.Embedding(VOCABULARY, WIDTH), nn.ModuleList(mixers)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in mixers)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map (batch, tokens) to logits."""
        x = self.embed(ids)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.head(self.norm(x))


class MambaMixer(nn.Module):
    """A causal convolution and a selective state space, scanned step by step."""

    def __init__(self, width: int = WIDTH, state: int = 8, rank: int = 4) -> None:
        super().__init__()
        self.inner, self.state, self.rank = 2 * width, state, rank
        self.in_proj, self.out_proj = nn.Linear(width, 4 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        self.conv = nn.Conv1d(self.inner, self.inner, 4, groups=self.inner, padding=3)
        self.x_proj, self.dt_proj = nn.Linear(self.inner, rank + 2 * state, bias=False), nn.Linear(rank, self.inner)
        self.a_log = nn.Parameter(torch.log(torch.arange(1, state + 1).float().repeat(self.inner, 1)))
        self.d = nn.Parameter(torch.ones(self.inner))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        b, length, _ = x.shape
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., :length].transpose(1, 2))
        delta, bs, cs = torch.split(self.x_proj(u), [self.rank, self.state, self.state], dim=-1)
        delta = F.softplus(self.dt_proj(delta))
        decay = torch.exp(delta.unsqueeze(-1) * -torch.exp(self.a_log))
        drive = delta.unsqueeze(-1) * bs.unsqueeze(2) * u.unsqueeze(-1)
        h, ys = torch.zeros(b, self.inner, self.state), []
        for t in range(length):
            h = decay[:, t] * h + drive[:, t]
            ys.append(torch.einsum("bdn,bn->bd", h, cs[:, t]))
        y = torch.stack(ys, dim=1) + u * self.d
        return self.out_proj(y * F.silu(gate))


def mamba() -> Built:
    """Selective state spaces."""
    return Decoder(MambaMixer(), MambaMixer()), (tokens(),)


class RWKVTime(nn.Module):
    """Token shift and a weighted sum with decay, step by step."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.decay, self.bonus = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))
        self.mix_k, self.mix_v, self.mix_r = (nn.Parameter(torch.rand(1, 1, width)) for _ in range(3))
        self.shift = nn.ZeroPad2d((0, 0, 1, -1))
        self.key, self.value, self.receptance, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        last = self.shift(x)
        k = self.key(x * self.mix_k + last * (1 - self.mix_k))
        v = self.value(x * self.mix_v + last * (1 - self.mix_v))
        r = torch.sigmoid(self.receptance(x * self.mix_r + last * (1 - self.mix_r)))
        decay = -torch.exp(self.decay)
        aa, bb, pp = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), torch.full_like(k[:, 0], -1e30)
        out = []
        for t in range(x.shape[1]):
            kt, vt = k[:, t], v[:, t]
            ww = self.bonus + kt
            q = torch.maximum(pp, ww)
            e1, e2 = torch.exp(pp - q), torch.exp(ww - q)
            out.append((e1 * aa + e2 * vt) / (e1 * bb + e2))
            ww = pp + decay
            q = torch.maximum(ww, kt)
            e1, e2 = torch.exp(ww - q), torch.exp(kt - q)
            aa, bb, pp = e1 * aa + e2 * vt, e1 * bb + e2, q
        return self.output(r * torch.stack(out, 1))


class RWKVChannel(nn.Module):
    """Token shift, a squared ReLU, a gate."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.rand(width))
        self.key, self.value = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        last = F.pad(x, (0, 0, 1, -1))
        mixed = torch.lerp(last, x, self.mix)
        return torch.sigmoid(self.receptance(mixed)) * self.value(torch.square(torch.relu(self.key(mixed))))


def rwkv() -> Built:
    """Time and channel mixing."""
    return Decoder(RWKVTime(), RWKVChannel()), (tokens(),)


class Hyena(nn.Module):
    """Long implicit filters applied by Fourier transforms, between gates."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.width = width
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.short = nn.Conv1d(3 * width, 3 * width, 3, padding=2, groups=3 * width)
        self.filter = nn.Sequential(nn.Linear(3, 32), nn.GELU(), nn.Linear(32, width))
        self.bias = nn.Parameter(torch.randn(width))

    def forward(self, u: Tensor) -> Tensor:
        """Keep the shape."""
        length = u.size(-2)
        x = self.short(self.in_proj(u).transpose(1, 2))[..., :length]
        v, one, two = x.split(self.width, dim=1)
        t = torch.linspace(0, 1, length)[:, None]
        k = self.filter(torch.cat([t, torch.cos(6.28 * t), torch.sin(6.28 * t)], dim=-1)) * torch.exp(-3 * t)
        v = v * one
        spectrum = torch.fft.rfft(v, n=2 * length) * torch.fft.rfft(k.transpose(0, 1), n=2 * length)
        y = torch.fft.irfft(spectrum, n=2 * length)[..., :length] + v * self.bias.unsqueeze(-1)
        return self.out_proj((y * two).transpose(1, 2))


def hyena() -> Built:
    """Convolution by Fourier transforms."""
    return Decoder(Hyena(), Hyena()), (tokens(),)


class Experts(nn.Module):
    """The two best of four experts for each token: their weights as one tensor, all computed, others at zero."""

    def __init__(self, width: int = WIDTH, wide: int = 96, experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.w1, self.w2 = (
            nn.Parameter(0.1 * torch.randn(experts, width, wide)),
            nn.Parameter(0.1 * torch.randn(experts, wide, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        logits = self.router(x)
        top, index = torch.topk(logits, 2, dim=-1)
        weights = torch.zeros_like(logits).scatter_(-1, index, F.softmax(top, dim=-1))
        h = F.silu(torch.einsum("btd,edh->bteh", x, self.w1))
        return torch.einsum("bteh,ehd,bte->btd", h, self.w2, weights)


class ListedExperts(nn.Module):
    """Experts as a list of modules, each with its share of every token."""

    def __init__(self, width: int = WIDTH, wide: int = 96, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, wide), nn.ReLU(), nn.Linear(wide, width)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        share = torch.softmax(self.gate(x), dim=-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        return torch.sum(share.unsqueeze(-1) * outputs, dim=-2)


def mixture_of_experts() -> Built:
    """Experts by einsum and as a list."""
    return Decoder(Experts(), ListedExperts()), (tokens(),)


class LinearAttention(nn.Module):
    """Positive features of queries and keys; keys and values are summed first."""

    def __init__(self, width: int = WIDTH, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        b, n, d = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, -1) for layer in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        kv = torch.einsum("nshd,nshm->nhmd", k, v)
        z = 1 / (torch.einsum("nlhd,nhd->nlh", q, k.sum(dim=1)) + 1e-6)
        return self.o(torch.einsum("nlhd,nhmd,nlh->nlhm", q, kv, z).reshape(b, n, d))


def linear_transformer() -> Built:
    """Attention without softmax."""
    return Decoder(LinearAttention(), LinearAttention()), (tokens(),)


class MaskedSelfAttention(nn.Module):
    """torch's own attention with a causal mask and returned weights."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        mask = torch.triu(torch.full((x.size(1), x.size(1)), float("-inf")), diagonal=1)
        y, weights = self.attention(x, x, x, attn_mask=mask, need_weights=True)
        return y + 0 * weights.sum()


def masked_multihead() -> Built:
    """A float mask and attention weights."""
    return Decoder(MaskedSelfAttention(), ListedExperts()), (tokens(),)


class TextCNN(nn.Module):
    """Kernels of three widths over words, their maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 48)
        self.convs = nn.ModuleList(nn.Conv2d(1, 32, (k, 48)) for k in (3, 4, 5))
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(96, 5)

    def forward(self, ids: Tensor) -> Tensor:
        """Map (batch, tokens) to logits."""
        x = self.embed(ids).unsqueeze(1)
        maps = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        pooled = [F.max_pool1d(m, m.size(2)).squeeze(2) for m in maps]
        return self.head(self.dropout(torch.cat(pooled, 1)))


def text_cnn() -> Built:
    """Sentence classification by convolutions."""
    return TextCNN(), (tokens(),)


class FastText(nn.Module):
    """The mean of word vectors by an embedding bag."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(VOCABULARY, 64, mode="mean")
        self.hidden, self.head = nn.Linear(64, 48), nn.Linear(48, 5)

    def forward(self, ids: Tensor) -> Tensor:
        """Map (batch, tokens) to logits."""
        return self.head(F.relu(self.hidden(self.bag(ids))))


def fasttext() -> Built:
    """Embedding bag."""
    return FastText(), (tokens(),)


class Seq2Seq(nn.Module):
    """A bidirectional GRU, a decoder with additive attention, teacher forcing."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, 32), nn.Embedding(VOCABULARY, 32)
        self.encoder = nn.GRU(32, width, bidirectional=True, batch_first=True)
        self.bridge, self.cell = nn.Linear(2 * width, width), nn.GRUCell(32 + 2 * width, width)
        self.w, self.u, self.v = nn.Linear(2 * width, 32), nn.Linear(width, 32), nn.Linear(32, 1, bias=False)
        self.head = nn.Linear(3 * width, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Map source and target tokens to logits of the next ones."""
        memory, last = self.encoder(self.source(source))
        h = torch.tanh(self.bridge(torch.cat((last[-2], last[-1]), dim=1)))
        keys, logits = self.w(memory), []
        embedded = self.target(target)
        for t in range(embedded.size(1)):
            energy = self.v(torch.tanh(keys + self.u(h).unsqueeze(1))).squeeze(2)
            context = torch.bmm(F.softmax(energy, dim=1).unsqueeze(1), memory).squeeze(1)
            h = self.cell(torch.cat((embedded[:, t], context), dim=1), h)
            logits.append(self.head(torch.cat((h, context), dim=1)))
        return torch.stack(logits, dim=1)


def seq2seq() -> Built:
    """Additive attention and a recurrent cell."""
    return Seq2Seq(), (tokens(), torch.randint(VOCABULARY, (2, 6)))


SEQUENCES: dict[str, Architecture] = {
    "mamba": Architecture(mamba, "Gu and Dao, 2023", ("head",)),
    "rwkv": Architecture(rwkv, "Peng et al., 2023", ("head",)),
    "hyena": Architecture(hyena, "Poli et al., 2023", ("head",)),
    "mixture_of_experts": Architecture(
        mixture_of_experts, "Shazeer et al., 2017", ("head", "mixers.0.router", "mixers.1.gate")
    ),
    "linear_transformer": Architecture(linear_transformer, "Katharopoulos et al., 2020", ("head",)),
    "masked_multihead": Architecture(masked_multihead, "Vaswani et al., 2017", ("head", "mixers.1.gate")),
    "text_cnn": Architecture(text_cnn, "Kim, 2014", ("head",)),
    "fasttext": Architecture(fasttext, "Joulin et al., 2017", ("head",)),
    "seq2seq": Architecture(seq2seq, "Bahdanau et al., 2015", ("head",)),
}
