"""Networks whose outputs are images: super-resolution, denoising, generation, autoencoders, diffusion."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Architecture, Built

SMALL = (2, 3, 24, 24)


class ResidualScaled(nn.Module):
    """Two convolutions without norm, scaled, and a skip."""

    def __init__(self, width: int, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(True), nn.Conv2d(width, width, 3, 1, 1))
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        y = self.body(x)
        return x + (y.mul(0.1) if self.gate is None else self.gate(y))


class EDSR(nn.Module):
    """A fixed shift of the mean, residual blocks, a global skip, pixel shuffle."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1))
        self.head, self.body = nn.Conv2d(3, 48, 3, 1, 1), nn.Sequential(*blocks, nn.Conv2d(48, 48, 3, 1, 1))
        self.tail = nn.Sequential(nn.Conv2d(48, 192, 3, 1, 1), nn.PixelShuffle(2), nn.Conv2d(48, 3, 3, 1, 1))
        self.mean: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Double the size of images."""
        x = self.head(images - self.mean)
        return self.tail(x + self.body(x)) + self.mean


def edsr() -> Built:
    """Residual scaling."""
    return EDSR(*(ResidualScaled(48) for _ in range(3))), (torch.randn(SMALL),)


class ChannelGate(nn.Module):
    """A gate for each channel from its mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.layers = nn.Sequential(
            nn.Conv2d(width, width // 8, 1), nn.ReLU(True), nn.Conv2d(width // 8, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return x * self.layers(self.pool(x))


def rcan() -> Built:
    """Residual channel attention."""
    return EDSR(*(ResidualScaled(48, ChannelGate(48)) for _ in range(3))), (torch.randn(SMALL),)


def espcn() -> Built:
    """Convolutions at low resolution, then pixel shuffle."""
    body = nn.Sequential(
        nn.Conv2d(1, 64, 5, 1, 2), nn.Tanh(), nn.Conv2d(64, 32, 3, 1, 1), nn.Tanh(), nn.Conv2d(32, 9, 3, 1, 1),
        nn.PixelShuffle(3), nn.Sigmoid(),
    )  # fmt: skip
    return body, (torch.randn(2, 1, 24, 24),)


class DnCNN(nn.Module):
    """Predicts the noise, which is taken from the input."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 48, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(4):
            layers += [nn.Conv2d(48, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers, nn.Conv2d(48, 1, 3, padding=1, bias=False))

    def forward(self, images: Tensor) -> Tensor:
        """Keep the shape."""
        return images - self.body(images)


def dncnn() -> Built:
    """Residual denoising."""
    return DnCNN(), (torch.randn(2, 1, 32, 32),)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a map, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        y = (x - mean) / (variance + 1e-6).sqrt()
        return self.weight.view(1, -1, 1, 1) * y + self.bias.view(1, -1, 1, 1)


class SimpleGate(nn.Module):
    """The product of both halves of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Halve the channels."""
        one, two = x.chunk(2, dim=1)
        return one * two


class NAFBlock(nn.Module):
    """No activation: gates are products."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.gate = LayerNorm2d(width), LayerNorm2d(width), SimpleGate()
        self.conv1, self.conv3 = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(width, width, 1)
        self.conv2 = nn.Conv2d(2 * width, 2 * width, 3, 1, 1, groups=2 * width)
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1))
        self.conv4, self.conv5 = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(width, width, 1)
        self.beta, self.gamma = (nn.Parameter(torch.zeros(1, width, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        y = self.gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.conv3(y * self.attention(y)) * self.beta
        return x + self.conv5(self.gate(self.conv4(self.norm2(x)))) * self.gamma


class NAFNet(nn.Module):
    """A U-shape of such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.intro, self.ending = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)
        self.encoder, self.middle, self.decoder = NAFBlock(32), NAFBlock(64), NAFBlock(32)
        self.down, self.up = (
            nn.Conv2d(32, 64, 2, 2),
            nn.Sequential(nn.Conv2d(64, 128, 1, bias=False), nn.PixelShuffle(2)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Keep the shape."""
        x = self.encoder(self.intro(images))
        y = self.decoder(self.up(self.middle(self.down(x))) + x)
        return self.ending(y) + images


def nafnet() -> Built:
    """Restoration without activations."""
    return NAFNet(), (torch.randn(SMALL),)


class ModulatedConv2d(nn.Module):
    """A weight for each sample, scaled by its style and normalized; the batch is folded into the groups."""

    def __init__(self, channels: int, out: int, style: int, kernel: int = 3, demodulate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, out, channels, kernel, kernel))
        self.scale, self.padding, self.demodulate = 1 / math.sqrt(channels * kernel**2), kernel // 2, demodulate
        self.modulation = nn.Linear(style, channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to (batch, out, h, w)."""
        batch, channels, height, width = x.shape
        _, out, _, k, _ = self.weight.shape
        weight = self.scale * self.weight * self.modulation(style).view(batch, 1, channels, 1, 1)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(batch, out, 1, 1, 1)
        weight = weight.view(batch * out, channels, k, k)
        y = F.conv2d(x.view(1, batch * channels, height, width), weight, padding=self.padding, groups=batch)
        return y.view(batch, out, height, width)


class StyleGAN2(nn.Module):
    """A mapping network, a learned constant, modulated convolutions, sums of images."""

    def __init__(self, style: int = 64) -> None:
        super().__init__()
        self.mapping = nn.Sequential(
            *(layer for _ in range(3) for layer in (nn.Linear(style, style), nn.LeakyReLU(0.2)))
        )
        self.constant = nn.Parameter(torch.randn(1, 48, 4, 4))
        self.conv1, self.conv2 = ModulatedConv2d(48, 48, style), ModulatedConv2d(48, 32, style)
        self.image1, self.image2 = (ModulatedConv2d(width, 3, style, 1, False) for width in (48, 32))
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(1, 48, 1, 1)), nn.Parameter(torch.zeros(1, 32, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        """Map noise to images."""
        w = self.mapping(z * torch.rsqrt(torch.mean(z**2, dim=1, keepdim=True) + 1e-8))
        x = F.leaky_relu(self.conv1(self.constant.repeat(z.shape[0], 1, 1, 1), w) + self.bias1, 0.2)
        image = self.image1(x, w)
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        x = F.leaky_relu(self.conv2(x, w) + self.bias2, 0.2)
        return self.image2(x, w) + F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)


def stylegan2() -> Built:
    """Modulated and demodulated weights."""
    return StyleGAN2(), (torch.randn(2, 64),)


def cyclegan() -> Built:
    """Reflection padding, instance norm, transposed convolutions."""
    layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, 24, 7), nn.InstanceNorm2d(24), nn.ReLU(True)]
    for c in (24, 48):
        layers += [nn.Conv2d(c, 2 * c, 3, 2, 1), nn.InstanceNorm2d(2 * c), nn.ReLU(True)]
    for _ in range(2):
        layers.append(ReflectionBlock(96))
    for c in (96, 48):
        layers += [nn.ConvTranspose2d(c, c // 2, 3, 2, 1, 1), nn.InstanceNorm2d(c // 2), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(24, 3, 7), nn.Tanh()), (torch.randn(2, 3, 32, 32),)


class ReflectionBlock(nn.Module):
    """Two padded convolutions with instance norm, and a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width), nn.ReLU(True),
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return x + self.body(x)


def sn_discriminator() -> Built:
    """A discriminator with spectral norm."""
    norm = nn.utils.parametrizations.spectral_norm
    layers = [
        norm(nn.Conv2d(3, 32, 4, 2, 1)), nn.LeakyReLU(0.2), norm(nn.Conv2d(32, 64, 4, 2, 1)), nn.LeakyReLU(0.2),
        norm(nn.Conv2d(64, 96, 4, 2, 1)), nn.LeakyReLU(0.2), nn.Flatten(), norm(nn.Linear(96 * 16, 1)),
    ]  # fmt: skip
    return nn.Sequential(*layers), (torch.randn(2, 3, 32, 32),)


class VAE(nn.Module):
    """Mean and variance of a code; in evaluation the mean is decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU())
        self.mu, self.logvar, self.expand = nn.Linear(64 * 49, 20), nn.Linear(64 * 49, 20), nn.Linear(20, 64 * 49)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Sigmoid()
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstructions, means and log variances."""
        h = self.encoder(images).view(images.size(0), -1)
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu
        return self.decoder(F.relu(self.expand(z)).view(-1, 64, 7, 7)), mu, logvar


def vae() -> Built:
    """A variational autoencoder."""
    return VAE(), (torch.randn(2, 1, 28, 28),)


class VQVAE(nn.Module):
    """The nearest entry of a code book, by distances; the gradient passes straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 48, 4, 2, 1), nn.ReLU(), nn.Conv2d(48, 32, 4, 2, 1))
        self.codes = nn.Embedding(64, 32)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(32, 48, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(48, 3, 4, 2, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstructions, and how far codes are from what was encoded."""
        z = self.encoder(images).permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, 32)
        distances = (flat**2).sum(1, keepdim=True) + (self.codes.weight**2).sum(1) - 2 * flat @ self.codes.weight.t()
        quantized = self.codes(torch.argmin(distances, 1)).view(z.shape)
        quantized = z + (quantized - z).detach()
        return self.decoder(quantized.permute(0, 3, 1, 2)), distances.min(1)[0].view(z.shape[0], -1)


def vq_vae() -> Built:
    """A code book."""
    return VQVAE(), (torch.randn(2, 3, 32, 32),)


class TimeBlock(nn.Module):
    """Group norm, the time step as scale and shift, a skip."""

    def __init__(self, channels: int, out: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, channels), nn.Conv2d(channels, out, 3, padding=1)
        self.time = nn.Linear(time, 2 * out)
        self.norm2, self.conv2 = nn.GroupNorm(8, out), nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Keep the size."""
        y = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(F.silu(t))[:, :, None, None].chunk(2, dim=1)
        return self.skip(x) + self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))


class DiffusionUNet(nn.Module):
    """Sinusoidal time steps, blocks with skips, attention at the bottom."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 64))
        self.first, self.down1 = nn.Conv2d(3, width, 3, padding=1), TimeBlock(width, width, 64)
        self.pool, self.down2 = nn.Conv2d(width, width, 3, 2, 1), TimeBlock(width, 2 * width, 64)
        self.norm = nn.GroupNorm(8, 2 * width)
        self.qkv, self.proj = nn.Conv1d(2 * width, 6 * width, 1), nn.Conv1d(2 * width, 2 * width, 1)
        self.up1, self.out = TimeBlock(3 * width, width, 64), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, images: Tensor, steps: Tensor) -> Tensor:
        """Map noisy images and their time steps to the noise."""
        frequencies = torch.exp(-math.log(10000) * torch.arange(16, dtype=torch.float32) / 16)
        angles = steps[:, None].float() * frequencies[None]
        t = self.time(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))
        one = self.down1(self.first(images), t)
        x = self.down2(self.pool(one), t)
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x).view(b, c, h * w)).reshape(b * 4, 3 * c // 4, h * w).split(c // 4, dim=1)
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(c // 4), dim=-1)
        x = x + self.proj(torch.einsum("bts,bcs->bct", weight, v).reshape(b, c, h * w)).view(b, c, h, w)
        x = torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), one], 1)
        return self.out(self.up1(x, t))


def diffusion_unet() -> Built:
    """Noise prediction."""
    return DiffusionUNet(), (torch.randn(2, 3, 16, 16), torch.tensor([10, 900]))


IMAGES: dict[str, Architecture] = {
    "edsr": Architecture(edsr, "Lim et al., 2017", ("tail.2",)),
    "rcan": Architecture(rcan, "Zhang et al., 2018", ("tail.2",)),
    "espcn": Architecture(espcn, "Shi et al., 2016", ("4",)),
    "dncnn": Architecture(dncnn, "Zhang et al., 2017", ("body.14",)),
    "nafnet": Architecture(nafnet, "Chen et al., 2022", ("ending",)),
    "stylegan2": Architecture(stylegan2, "Karras et al., 2020", ("image1", "image2")),
    "cyclegan": Architecture(cyclegan, "Zhu et al., 2017", ("19",)),
    "sn_discriminator": Architecture(sn_discriminator, "Miyato et al., 2018", ("7",)),
    "vae": Architecture(vae, "Kingma and Welling, 2014", ("mu", "logvar", "decoder.2")),
    "vq_vae": Architecture(vq_vae, "van den Oord et al., 2017", ("decoder.2",)),
    "diffusion_unet": Architecture(diffusion_unet, "Ho et al., 2020; Dhariwal and Nichol, 2021", ("out",)),
}
