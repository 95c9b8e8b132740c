"""Video, optical flow and control: shifts, 3-D convolutions, correlation, recurrent refinement, policies."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Architecture, Built
from benchmarks.zoo.layers import classifier, conv_norm
from benchmarks.zoo.residual import BasicBlock

FRAMES = 4


class TemporalShift(nn.Module):
    """Moves an eighth of the channels one frame ahead and an eighth one back, then convolves."""

    def __init__(self, layer: nn.Module, fold: int = 8) -> None:
        super().__init__()
        self.layer, self.fold = layer, fold

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch * frames, channels, h, w) through the layer."""
        nt, c, h, w = x.size()
        x = x.view(nt // FRAMES, FRAMES, c, h, w)
        fold = c // self.fold
        out = torch.zeros_like(x)
        out[:, :-1, :fold] = x[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return self.layer(out.view(nt, c, h, w))


class TSM(nn.Module):
    """A residual network on frames with shifts; the mean over frames."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 32, 3, 2)
        self.block1 = TemporalShift(BasicBlock(32, 48, 2))
        self.block2 = TemporalShift(BasicBlock(48, 96, 2))
        self.head = classifier(96, 10)

    def forward(self, video: Tensor) -> Tensor:
        """Map (batch, frames, 3, h, w) to logits."""
        b, t, c, h, w = video.shape
        x = self.block2(self.block1(self.stem(video.reshape(b * t, c, h, w))))
        return self.head(x).view(b, t, -1).mean(1)


def tsm() -> Built:
    """Temporal shift by copies into slices."""
    return TSM(), (torch.randn(2, FRAMES, 3, 32, 32),)


Sizes = tuple[int, int, int]


def conv3d(channels: int, out: int, kernel: Sizes, stride: Sizes = (1, 1, 1)) -> nn.Sequential:
    """Return a 3-D convolution, a batch norm and a ReLU."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(nn.Conv3d(channels, out, kernel, stride, padding, bias=False), nn.BatchNorm3d(out), nn.ReLU())


def r2plus1d() -> Built:
    """Spatial, then temporal convolutions."""
    layers = [
        conv3d(3, 32, (1, 5, 5), (1, 2, 2)), conv3d(32, 32, (3, 1, 1)), conv3d(32, 64, (1, 3, 3), (1, 2, 2)),
        conv3d(64, 64, (3, 1, 1), (2, 1, 1)), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(64, 10),
    ]  # fmt: skip
    return nn.Sequential(*layers), (torch.randn(2, 3, FRAMES, 32, 32),)


class SlowFast(nn.Module):
    """Two frame rates with lateral connections."""

    def __init__(self) -> None:
        super().__init__()
        self.slow1, self.fast1 = conv3d(3, 48, (1, 7, 7), (1, 2, 2)), conv3d(3, 12, (5, 7, 7), (1, 2, 2))
        self.lateral = nn.Conv3d(12, 24, (5, 1, 1), stride=(4, 1, 1), padding=(2, 0, 0), bias=False)
        self.slow2, self.fast2 = conv3d(72, 96, (1, 3, 3), (1, 2, 2)), conv3d(12, 24, (3, 3, 3), (1, 2, 2))
        self.pool, self.dropout, self.head = nn.AdaptiveAvgPool3d(1), nn.Dropout(0.5), nn.Linear(120, 10)

    def forward(self, video: Tensor) -> Tensor:
        """Map (batch, 3, frames, h, w) to logits."""
        slow, fast = self.slow1(video[:, :, ::4]), self.fast1(video)
        slow = torch.cat([slow, self.lateral(fast)], dim=1)
        x = torch.cat([self.pool(self.slow2(slow)), self.pool(self.fast2(fast))], dim=1)
        return self.head(self.dropout(x.flatten(1)))


def slowfast() -> Built:
    """Two pathways."""
    return SlowFast(), (torch.randn(2, 3, 8, 32, 32),)


class ConvLSTM(nn.Module):
    """A recurrent cell of convolutions, unrolled over frames."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.gates = nn.Conv2d(1 + width, 4 * width, 3, padding=1)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, video: Tensor) -> Tensor:
        """Map (batch, frames, 1, h, w) to the next frame."""
        b, t, _, height, width = video.size()
        h = torch.zeros(b, self.width, height, width)
        c = torch.zeros(b, self.width, height, width)
        for step in range(t):
            gates = self.gates(torch.cat([video[:, step], h], dim=1))
            i, f, o, g = torch.split(gates, self.width, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


def convlstm() -> Built:
    """Precipitation nowcasting."""
    return ConvLSTM(), (torch.randn(2, FRAMES, 1, 16, 16),)


class SmallEncoder(nn.Module):
    """Convolutions with instance norm to an eighth of the size."""

    def __init__(self, out: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 7, 2, 3), norm(32), nn.ReLU(), nn.Conv2d(32, 48, 3, 2, 1), norm(48), nn.ReLU(),
            nn.Conv2d(48, 64, 3, 2, 1), norm(64), nn.ReLU(), nn.Conv2d(64, out, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, out, h / 8, w / 8)."""
        return self.layers(x)


class RAFT(nn.Module):
    """All-pairs correlation, lookups around the current flow, a convolutional GRU."""

    def __init__(self, iterations: int = 2, radius: int = 2) -> None:
        super().__init__()
        self.iterations, self.radius = iterations, radius
        self.features, self.context = SmallEncoder(64, nn.InstanceNorm2d), SmallEncoder(96, nn.BatchNorm2d)
        span = (2 * radius + 1) ** 2
        self.corr, self.flow = nn.Conv2d(span, 48, 1), nn.Conv2d(2, 32, 7, padding=3)
        self.motion = nn.Conv2d(80, 46, 3, padding=1)
        self.z, self.r, self.q = (nn.Conv2d(48 + 48 + 48, 48, 3, padding=1) for _ in range(3))
        self.head = nn.Sequential(nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 2, 3, padding=1))

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        """Map two images to the flow between them, at an eighth of the size."""
        f1, f2 = self.features(one), self.features(two)
        b, c, h, w = f1.shape
        volume = torch.matmul(f1.view(b, c, h * w).transpose(1, 2), f2.view(b, c, h * w)) / c**0.5
        volume = volume.view(b * h * w, 1, h, w)
        hidden, inputs = torch.split(self.context(one), [48, 48], dim=1)
        hidden, inputs = torch.tanh(hidden), torch.relu(inputs)
        ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        start = torch.stack([xs, ys]).float()[None].repeat(b, 1, 1, 1)
        coordinates = start
        span = torch.linspace(-self.radius, self.radius, 2 * self.radius + 1)
        delta = torch.stack(torch.meshgrid(span, span, indexing="ij"), dim=-1).view(1, -1, 1, 2)
        for _ in range(self.iterations):
            centers = coordinates.permute(0, 2, 3, 1).reshape(b * h * w, 1, 1, 2) + delta
            grid = 2 * centers / torch.tensor([w - 1, h - 1]) - 1
            corr = F.grid_sample(volume, grid, align_corners=True).view(b, h, w, -1).permute(0, 3, 1, 2)
            flow = coordinates - start
            motion = F.relu(self.motion(torch.cat([F.relu(self.corr(corr)), F.relu(self.flow(flow))], dim=1)))
            x = torch.cat([inputs, motion, flow], dim=1)
            hx = torch.cat([hidden, x], dim=1)
            z, r = torch.sigmoid(self.z(hx)), torch.sigmoid(self.r(hx))
            q = torch.tanh(self.q(torch.cat([r * hidden, x], dim=1)))
            hidden = (1 - z) * hidden + z * q
            coordinates = coordinates + self.head(hidden)
        return coordinates - start


def raft_small() -> Built:
    """Recurrent all-pairs field transforms."""
    return RAFT(), (torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64))


class PWCNet(nn.Module):
    """Features warped by a coarse flow, a local cost volume, a finer flow."""

    def __init__(self, reach: int = 2) -> None:
        super().__init__()
        self.reach = reach
        self.one, self.two = conv_norm(3, 32, 3, 2, act=nn.LeakyReLU), conv_norm(32, 48, 3, 2, act=nn.LeakyReLU)
        span = (2 * reach + 1) ** 2
        self.coarse = nn.Sequential(
            nn.Conv2d(span + 48, 48, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(48, 2, 3, padding=1)
        )
        self.fine = nn.Sequential(
            nn.Conv2d(span + 34, 48, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(48, 2, 3, padding=1)
        )
        self.up = nn.ConvTranspose2d(2, 2, 4, 2, 1)

    def cost(self, one: Tensor, two: Tensor) -> Tensor:
        """Return the correlation with each neighbour."""
        r, (h, w) = self.reach, one.shape[2:]
        padded = F.pad(two, [r, r, r, r])
        rows = [
            torch.mean(one * padded[:, :, y : y + h, x : x + w], 1, keepdim=True)
            for y in range(2 * r + 1)
            for x in range(2 * r + 1)
        ]
        return F.leaky_relu(torch.cat(rows, 1), 0.1)

    @staticmethod
    def warp(x: Tensor, flow: Tensor) -> Tensor:
        """Sample a map at positions moved by the flow."""
        b, _, h, w = x.size()
        xx = torch.linspace(-1.0, 1.0, w).view(1, 1, 1, w).expand(b, -1, h, -1)
        yy = torch.linspace(-1.0, 1.0, h).view(1, 1, h, 1).expand(b, -1, -1, w)
        shift = torch.cat([flow[:, 0:1] / ((w - 1.0) / 2.0), flow[:, 1:2] / ((h - 1.0) / 2.0)], 1)
        grid = (torch.cat([xx, yy], 1) + shift).permute(0, 2, 3, 1)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        """Map two images to the flow at half of the size."""
        a1, b1 = self.one(one), self.one(two)
        a2, b2 = self.two(a1), self.two(b1)
        flow = self.coarse(torch.cat([self.cost(a2, b2), a2], 1))
        flow = self.up(flow)
        return flow + self.fine(torch.cat([self.cost(a1, self.warp(b1, flow)), a1, flow], 1))


def pwc_net() -> Built:
    """Pyramid, warping, cost volume (as LiteFlowNet)."""
    return PWCNet(), (torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32))


class DuelingDQN(nn.Module):
    """Convolutions on stacked frames, a value and the advantages less their mean."""

    def __init__(self, actions: int = 6) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()
        )
        self.value = nn.Sequential(nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 1))
        self.advantage = nn.Sequential(nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, actions))

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames from 0 to 255 to the value of each action."""
        x = self.conv(frames / 255.0).reshape(frames.size(0), -1)
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(dim=1, keepdim=True)


def dueling_dqn() -> Built:
    """Control from pixels."""
    return DuelingDQN(), (torch.randn(2, 4, 84, 84),)


MOTION: dict[str, Architecture] = {
    "tsm": Architecture(tsm, "Lin et al., 2019", ("head.3",)),
    "r2plus1d": Architecture(r2plus1d, "Tran et al., 2018", ("6",)),
    "slowfast": Architecture(slowfast, "Feichtenhofer et al., 2019", ("head",)),
    "convlstm": Architecture(convlstm, "Shi et al., 2015", ("out",)),
    "raft_small": Architecture(raft_small, "Teed and Deng, 2020", ("head.2",)),
    "pwc_net": Architecture(pwc_net, "Sun et al., 2018; Hui et al., 2018", ("coarse.2", "fine.2", "up")),
    "dueling_dqn": Architecture(dueling_dqn, "Wang et al., 2016", ("value.2", "advantage.2")),
}
