"""Speech, music and text lines: waveforms, separation, recognition, verification."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Architecture, Built
from benchmarks.zoo.layers import conv_norm


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates, residual and skip paths."""

    def __init__(self, width: int = 48, skip: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 1)
        self.dilations = (1, 2, 4, 8)
        self.filters = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=d) for d in self.dilations)
        self.gates = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=d) for d in self.dilations)
        self.residuals = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in self.dilations)
        self.skips = nn.ModuleList(nn.Conv1d(width, skip, 1) for _ in self.dilations)
        self.end1, self.end2 = nn.Conv1d(skip, 64, 1), nn.Conv1d(64, 32, 1)

    def forward(self, wave: Tensor) -> Tensor:
        """Map (batch, 1, time) to logits of each next sample."""
        x, skips = self.first(wave), []
        for i, dilation in enumerate(self.dilations):
            padded = F.pad(x, (dilation, 0))
            y = torch.tanh(self.filters[i](padded)) * torch.sigmoid(self.gates[i](padded))
            skips.append(self.skips[i](y))
            x = x + self.residuals[i](y)
        return self.end2(F.relu(self.end1(F.relu(sum(skips[1:], skips[0])))))


def wavenet() -> Built:
    """Gated dilated convolutions."""
    return WaveNet(), (torch.randn(2, 1, 128),)


class GlobalNorm(nn.Module):
    """Norm over channels and time, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(1, width, 1)), nn.Parameter(torch.zeros(1, width, 1))

    def forward(self, y: Tensor) -> Tensor:
        """Keep the shape (batch, width, time)."""
        mean = y.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        var = torch.pow(y - mean, 2).mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        return self.gamma * (y - mean) / torch.pow(var + 1e-8, 0.5) + self.beta


class ConvTasNet(nn.Module):
    """A learned filter bank, masks from separable convolutions, overlap-add by a transposed convolution."""

    def __init__(self, filters: int = 64, width: int = 48, wide: int = 96, speakers: int = 2) -> None:
        super().__init__()
        self.filters, self.speakers = filters, speakers
        self.encoder, self.decoder = (
            nn.Conv1d(1, filters, 16, 8, bias=False),
            nn.ConvTranspose1d(filters, 1, 16, 8, bias=False),
        )
        self.norm, self.bottleneck = GlobalNorm(filters), nn.Conv1d(filters, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, wide, 1), nn.PReLU(), GlobalNorm(wide),
                nn.Conv1d(wide, wide, 3, padding=2**i, dilation=2**i, groups=wide), nn.PReLU(), GlobalNorm(wide),
                nn.Conv1d(wide, width, 1),
            ) for i in range(3)
        )  # fmt: skip
        self.masks = nn.Conv1d(width, speakers * filters, 1)

    def forward(self, wave: Tensor) -> Tensor:
        """Map (batch, 1, time) to (batch, speakers, time)."""
        w = F.relu(self.encoder(wave))
        x = self.bottleneck(self.norm(w))
        for block in self.blocks:
            x = x + block(x)
        masks = F.relu(self.masks(x)).view(w.shape[0], self.speakers, self.filters, -1)
        sources = (w.unsqueeze(1) * masks).view(w.shape[0] * self.speakers, self.filters, -1)
        return self.decoder(sources).view(w.shape[0], self.speakers, -1)


def conv_tasnet() -> Built:
    """Separation in the time domain."""
    return ConvTasNet(), (torch.randn(2, 1, 256),)


class DTLN(nn.Module):
    """A mask from LSTMs on a learned basis, with instant layer norm; overlap-add by fold."""

    def __init__(self, frame: int = 64, width: int = 48) -> None:
        super().__init__()
        self.frame = frame
        self.encoder, self.decoder = nn.Conv1d(frame, 96, 1, bias=False), nn.Conv1d(96, frame, 1, bias=False)
        self.norm, self.lstm1, self.lstm2 = (
            nn.LayerNorm(96),
            nn.LSTM(96, width, batch_first=True),
            nn.LSTM(width, width, batch_first=True),
        )
        self.mask = nn.Linear(width, 96)

    def forward(self, wave: Tensor) -> Tensor:
        """Map (batch, time) to (batch, time)."""
        frames = wave.unfold(-1, self.frame, self.frame // 4).transpose(1, 2)
        encoded = self.encoder(frames).transpose(1, 2)
        x, _ = self.lstm1(self.norm(encoded))
        x, _ = self.lstm2(x)
        estimate = encoded * torch.sigmoid(self.mask(x))
        out = self.decoder(estimate.transpose(1, 2))
        return F.fold(out, (1, wave.shape[-1]), (1, self.frame), stride=(1, self.frame // 4)).flatten(1)


def dtln() -> Built:
    """Noise suppression in blocks."""
    return DTLN(), (torch.randn(2, 256),)


class CRNNOCR(nn.Module):
    """Convolutions over a text line, columns as steps, two bidirectional LSTMs."""

    def __init__(self, classes: int = 37) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(True), nn.MaxPool2d(2, 2), nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(True),
            nn.MaxPool2d(2, 2), nn.Conv2d(64, 96, 3, 1, 1), nn.BatchNorm2d(96), nn.ReLU(True),
            nn.MaxPool2d((2, 2), (2, 1), (0, 1)), nn.Conv2d(96, 96, 2, 1, 0), nn.BatchNorm2d(96), nn.ReLU(True),
        )  # fmt: skip
        self.rnn1, self.rnn2 = nn.LSTM(96, 48, bidirectional=True), nn.LSTM(48, 48, bidirectional=True)
        self.embedding1, self.embedding2 = nn.Linear(96, 48), nn.Linear(96, classes)

    def forward(self, lines: Tensor) -> Tensor:
        """Map (batch, 1, 16, width) to (steps, batch, classes)."""
        x = self.cnn(lines).squeeze(2).permute(2, 0, 1)
        for rnn, embedding in ((self.rnn1, self.embedding1), (self.rnn2, self.embedding2)):
            recurrent, _ = rnn(x)
            t, b, h = recurrent.size()
            x = embedding(recurrent.view(t * b, h)).view(t, b, -1)
        return F.log_softmax(x, dim=2)


def crnn_ocr() -> Built:
    """Text recognition, time first."""
    return CRNNOCR(), (torch.randn(2, 1, 16, 64),)


class QuartzBlock(nn.Module):
    """Separable convolutions over time and a skip with a batch norm."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(2):
            c = out if i else channels
            layers += [
                nn.Conv1d(c, c, kernel, padding=kernel // 2, groups=c, bias=False), nn.Conv1d(c, out, 1, bias=False),
                nn.BatchNorm1d(out), nn.ReLU(),
            ]  # fmt: skip
        self.body = nn.Sequential(*layers[:-1])
        self.skip = nn.Sequential(nn.Conv1d(channels, out, 1, bias=False), nn.BatchNorm1d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the length."""
        return F.relu(self.body(x) + self.skip(x))


class QuartzNet(nn.Module):
    """Blocks of separable convolutions and log probabilities of letters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(40, 64, 11, 2, 5, bias=False), nn.BatchNorm1d(64), nn.ReLU())
        self.blocks = nn.Sequential(QuartzBlock(64, 64, 11), QuartzBlock(64, 96, 13))
        self.head = nn.Conv1d(96, 29, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, 40, frames) to (batch, frames / 2, letters)."""
        return F.log_softmax(self.head(self.blocks(self.first(features))).transpose(1, 2), dim=-1)


def quartznet() -> Built:
    """Time-channel separable convolutions."""
    return QuartzNet(), (torch.randn(2, 40, 64),)


class RelativeAttention(nn.Module):
    """Attention with two learned biases and relative positions, shifted as in Transformer-XL."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.depth = heads, width // heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.place = nn.Linear(width, width, bias=False)
        self.u, self.w = (nn.Parameter(0.1 * torch.randn(heads, width // heads)) for _ in range(2))

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """Keep the shape; ``places`` is (1, 2 time - 1, width)."""
        b, t, width = x.shape
        q = self.q(x).view(b, t, self.heads, self.depth)
        k = self.k(x).view(b, t, self.heads, self.depth).transpose(1, 2)
        v = self.v(x).view(b, t, self.heads, self.depth).transpose(1, 2)
        p = self.place(places).view(1, -1, self.heads, self.depth).transpose(1, 2)
        content = torch.matmul((q + self.u).transpose(1, 2), k.transpose(-2, -1))
        shifted = torch.matmul((q + self.w).transpose(1, 2), p.transpose(-2, -1))
        zeros = torch.zeros((b, self.heads, t, 1), dtype=x.dtype)
        padded = torch.cat([zeros, shifted], dim=-1).view(b, self.heads, 2 * t, t)
        shifted = padded[:, :, 1:].view_as(shifted)[:, :, :, :t]
        attention = torch.softmax((content + shifted) / self.depth**0.5, dim=-1)
        return self.out(torch.matmul(attention, v).transpose(1, 2).reshape(b, t, width))


class Squeezeformer(nn.Module):
    """Subsampling, post-norm attention, feed-forward and convolution, half the rate in the middle, and back."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.sub = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, groups=32), nn.Conv2d(32, 32, 1), nn.ReLU()
        )
        self.project = nn.Linear(32 * 9, width)
        self.attentions = nn.ModuleList(RelativeAttention(width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(6))
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)) for _ in range(2)
        )
        self.wide = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(2))
        self.depth = nn.ModuleList(nn.Conv1d(2 * width, 2 * width, 7, padding=3, groups=2 * width) for _ in range(2))
        self.batch_norms = nn.ModuleList(nn.BatchNorm1d(2 * width) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Conv1d(2 * width, width, 1) for _ in range(2))
        self.reduce, self.recover = nn.Conv1d(width, width, 3, 2, 1, groups=width), nn.Linear(width, width)
        self.head = nn.Linear(width, 30)

    def block(self, i: int, x: Tensor) -> Tensor:
        """Run one block."""
        t, width = x.shape[1], x.shape[2]
        steps = torch.arange(t - 1, -t, -1, dtype=torch.float32)
        rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-9.21 / width))
        angles = steps[:, None] * rates
        places = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]
        x = self.norms[3 * i](x + self.attentions[i](x, places))
        x = self.norms[3 * i + 1](x + self.feeds[i](x))
        y = F.silu(self.batch_norms[i](self.depth[i](F.silu(self.wide[i](x.transpose(1, 2))))))
        return self.norms[3 * i + 2](x + self.narrow[i](y).transpose(1, 2))

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, frames, 40) to (batch, frames / 4, labels)."""
        x = self.sub(features.unsqueeze(1))
        x = self.project(x.transpose(1, 2).flatten(2))
        full = self.block(0, x)
        half = self.block(1, self.reduce(full.transpose(1, 2)).transpose(1, 2))
        return self.head(full + self.recover(half.repeat_interleave(2, dim=1)[:, : full.shape[1]]))


def squeezeformer() -> Built:
    """Relative positions, a temporal U."""
    return Squeezeformer(), (torch.randn(2, 67, 40),)


class SERes2Block(nn.Module):
    """A chain over parts of the channels, then squeeze-excite over time."""

    def __init__(self, width: int, dilation: int, parts: int = 4) -> None:
        super().__init__()
        self.first, self.last, part = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1), width // parts
        self.norm1, self.norm2 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)
        self.convs = nn.ModuleList(
            nn.Conv1d(part, part, 3, padding=dilation, dilation=dilation) for _ in range(parts - 1)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(part) for _ in range(parts - 1))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool1d(1), nn.Conv1d(width, 16, 1), nn.ReLU(), nn.Conv1d(16, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        parts = list(torch.chunk(self.norm1(F.relu(self.first(x))), len(self.convs) + 1, 1))
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            parts[i] = norm(F.relu(conv(parts[i] + parts[i - 1] if i else parts[i])))
        y = self.norm2(F.relu(self.last(torch.cat(parts, 1))))
        return x + y * self.gate(y)


class ECAPA(nn.Module):
    """Blocks, attentive statistics over time (mean and deviation with a weight for each channel), an embedding."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(40, width, 5, padding=2), nn.BatchNorm1d(width)
        self.blocks = nn.ModuleList(SERes2Block(width, d) for d in (2, 3))
        self.join = nn.Conv1d(2 * width, 96, 1)
        self.attention = nn.Sequential(
            nn.Conv1d(288, 32, 1), nn.ReLU(), nn.BatchNorm1d(32), nn.Tanh(), nn.Conv1d(32, 96, 1), nn.Softmax(dim=2)
        )
        self.norm5, self.fc, self.norm6 = nn.BatchNorm1d(192), nn.Linear(192, 48), nn.BatchNorm1d(48)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, 40, frames) to embeddings of length 1."""
        x = self.norm(F.relu(self.first(features)))
        one = self.blocks[0](x)
        x = F.relu(self.join(torch.cat((one, self.blocks[1](x + one)), dim=1)))
        t = x.size()[-1]
        mean, std = torch.mean(x, dim=2, keepdim=True), torch.sqrt(torch.var(x, dim=2, keepdim=True).clamp(min=1e-4))
        w = self.attention(torch.cat((x, mean.repeat(1, 1, t), std.repeat(1, 1, t)), dim=1))
        mu = torch.sum(x * w, dim=2)
        sg = torch.sqrt((torch.sum((x**2) * w, dim=2) - mu**2).clamp(min=1e-4))
        return F.normalize(self.norm6(self.fc(self.norm5(torch.cat((mu, sg), 1)))), dim=1)


def ecapa_tdnn() -> Built:
    """Speaker verification."""
    return ECAPA(), (torch.randn(2, 40, 48),)


class Demucs(nn.Module):
    """A waveform U-Net with gated convolutions, an LSTM at the bottom, and cropped skips."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (2, width, 2 * width)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for i in range(2):
            c, out = widths[i], widths[i + 1]
            self.encoder.append(
                nn.Sequential(nn.Conv1d(c, out, 8, 4), nn.ReLU(), nn.Conv1d(out, 2 * out, 1), nn.GLU(1))
            )
            act = [nn.ReLU()] if i else []
            self.decoder.insert(
                0,
                nn.Sequential(
                    nn.Conv1d(out, 2 * out, 3), nn.GLU(1), nn.ConvTranspose1d(out, 4 if not i else c, 8, 4), *act
                ),
            )
        self.lstm, self.linear = nn.LSTM(2 * width, 2 * width, 1, bidirectional=True), nn.Linear(4 * width, 2 * width)

    def forward(self, wave: Tensor) -> Tensor:
        """Map (batch, 2, time) to (batch, sources, 2, time)."""
        x, skips = wave, []
        for layer in self.encoder:
            x = layer(x)
            skips.append(x)
        y, _ = self.lstm(x.permute(2, 0, 1))
        x = self.linear(y).permute(1, 2, 0)
        for layer in self.decoder:
            skip = skips.pop()
            crop = (skip.size(-1) - x.size(-1)) // 2
            x = layer(x + skip[..., crop : crop + x.size(-1)])
        return x.view(x.size(0), 2, 2, x.size(-1))


def demucs() -> Built:
    """Music separation."""
    return Demucs(), (torch.randn(2, 2, 340),)


class SpectrogramNet(nn.Module):
    """A Fourier transform in the network, its magnitude through a fixed mel matrix, convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.register_buffer("mel", torch.rand(33, 24))
        self.window: Tensor
        self.mel: Tensor
        self.body = nn.Sequential(conv_norm(1, 32, 3, 2), conv_norm(32, 64, 3, 2), conv_norm(64, 64, 3))
        self.head = nn.Linear(64, 10)

    def forward(self, wave: Tensor) -> Tensor:
        """Map (batch, time) to logits."""
        spectrum = torch.stft(wave, 64, 32, window=self.window, center=True, return_complex=True)
        power = spectrum.abs().pow(2)
        mel = torch.log(torch.matmul(power.transpose(1, 2), self.mel) + 1e-6)
        return self.head(self.body(mel.unsqueeze(1)).mean((2, 3)))


def spectrogram_net() -> Built:
    """The front end inside."""
    return SpectrogramNet(), (torch.randn(2, 1024),)


AUDIO: dict[str, Architecture] = {
    "wavenet": Architecture(wavenet, "van den Oord et al., 2016", ("end2",)),
    "conv_tasnet": Architecture(conv_tasnet, "Luo and Mesgarani, 2019", ("decoder",)),
    "dtln": Architecture(dtln, "Westhausen and Meyer, 2020", ("decoder",)),
    "crnn_ocr": Architecture(crnn_ocr, "Shi et al., 2017", ("embedding2",)),
    "quartznet": Architecture(quartznet, "Kriman et al., 2020", ("head",)),
    "squeezeformer": Architecture(squeezeformer, "Kim et al., 2022", ("head",)),
    "ecapa_tdnn": Architecture(ecapa_tdnn, "Desplanques et al., 2020", ("fc",)),
    "demucs": Architecture(demucs, "Défossez et al., 2019", ("decoder.1.2",)),
    "spectrogram_net": Architecture(spectrogram_net, "Hershey et al., 2017", ("head",)),
}
