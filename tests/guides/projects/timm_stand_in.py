"""``timm.create_model`` with a small network in timm's manner: depthwise layers, squeeze-and-excitation, hard swish."""

import torch
from torch import nn


class SqueezeExcite(nn.Module):
    def __init__(self, channels, reduced):
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(channels, reduced, 1), nn.Conv2d(reduced, channels, 1)
        self.act1, self.gate = nn.ReLU(inplace=True), nn.Hardsigmoid(inplace=True)

    def forward(self, x):
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True)))))


class BatchNormAct2d(nn.BatchNorm2d):
    """A batch norm with its activation, as timm merges them."""

    def __init__(self, channels, activation):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), activation

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class InvertedResidual(nn.Module):
    def __init__(self, channels, middle):
        super().__init__()
        self.conv_pw, self.bn1 = nn.Conv2d(channels, middle, 1, bias=False), BatchNormAct2d(middle, nn.Hardswish())
        self.conv_dw = nn.Conv2d(middle, middle, 3, padding=1, groups=middle, bias=False)
        self.bn2, self.se = BatchNormAct2d(middle, nn.Hardswish()), SqueezeExcite(middle, 8)
        self.conv_pwl, self.bn3 = nn.Conv2d(middle, channels, 1, bias=False), BatchNormAct2d(channels, nn.Identity())

    def forward(self, x):
        return x + self.bn3(self.conv_pwl(self.se(self.bn2(self.conv_dw(self.bn1(self.conv_pw(x)))))))


class MobileNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.bn1 = BatchNormAct2d(16, nn.Hardswish(inplace=True))
        self.blocks = nn.Sequential(nn.Sequential(InvertedResidual(16, 32)), nn.Sequential(InvertedResidual(16, 48)))
        self.classifier = nn.Linear(16, num_classes)

    def forward_features(self, x):
        return self.blocks(self.bn1(self.conv_stem(x)))

    def forward_head(self, x, pre_logits: bool = False):
        x = x.mean((2, 3))
        return x if pre_logits else self.classifier(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def create_model(name, num_classes=1000, checkpoint_path=""):
    assert name == "mobilenetv3_small_100"
    model = MobileNet(num_classes)
    if checkpoint_path:
        model.load_state_dict(torch.load(checkpoint_path, weights_only=True)["state_dict"])
    return model
