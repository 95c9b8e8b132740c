"""Networks for apps: the class of each pixel of a drawn scene and the word in a waveform, trained now, and boxes."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from app_bundles import COLORS, IMAGES, RectangleFinder, draw_rectangles

import edgeopt
from edgeopt.bundle.raw_inputs import input_of_pixels

SCENE_CLASSES = ("road", "tree", "car")
SCENE_SIZE = (24, 32)
SCENES = edgeopt.ImagePreprocessing(height=24, width=32, mean=(0.4,), std=(0.25,))
COLOURS = np.array([[110, 110, 110], [40, 150, 60], [180, 60, 50]])
WORDS = {"hum": (200, 400), "call": (700, 1000), "beep": (1500, 2000)}
"""Frequencies of each word, in hertz."""
SOUNDS = edgeopt.SoundPreprocessing(sample_rate=8000, samples=2000, align="middle")


def draw_scene(generator: np.random.Generator, scale: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return a road with a tree and a car, ``scale`` times as large as the network's input, and the input's classes."""
    height, width = SCENE_SIZE
    classes = np.zeros(SCENE_SIZE, np.int64)
    classes[: generator.integers(6, 12), : generator.integers(8, 16)] = 1
    top, left = generator.integers(12, height - 8), generator.integers(0, width - 12)
    classes[top : top + 7, left : left + 12] = 2
    large = classes.repeat(scale, 0).repeat(scale, 1)
    pixels = COLOURS[large] + generator.normal(0, 25, (*large.shape, 3))
    return pixels.clip(0, 255).astype(np.uint8), classes


def make_wave(word: str, generator: np.random.Generator, rate: int = 8000, seconds: float = 0.25) -> np.ndarray:
    """Return a word, a tone of its range with noise, as samples of 16 bits."""
    times = np.arange(round(rate * seconds)) / rate
    tone = generator.uniform(*WORDS[word])
    wave = generator.uniform(0.1, 0.5) * np.sin(2 * np.pi * (tone * times + generator.random()))
    return np.rint((wave + generator.normal(0, 0.02, len(times))).clip(-1, 1) * (2**15 - 1)).astype("<i2")


def _scenes(seed: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = np.random.default_rng(seed)
    drawn = [draw_scene(generator) for _ in range(count)]
    images = torch.from_numpy(np.stack([pixels for pixels, _ in drawn])).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(np.stack([classes for _, classes in drawn]))
    return list(zip(((images - 0.4) / 0.25).split(16), labels.split(16), strict=True))


def _words(seed: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % len(WORDS)
    waves = np.stack([make_wave(list(WORDS)[label], generator) for label in labels]).astype(np.float32) / 2**15
    return list(zip(torch.from_numpy(waves).split(16), torch.from_numpy(labels).split(16), strict=True))


class WordNetwork(nn.Module):
    """Three convolutions on the waveform itself, and their mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 24, 64, stride=16), nn.BatchNorm1d(24), nn.ReLU(), nn.Conv1d(24, 24, 5, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(24, len(WORDS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x.unsqueeze(1)).mean(2))


def _train(network: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], epochs: int) -> nn.Module:
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(epochs):
        for inputs, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
    return network.eval()


def scenes():
    """Return the task of the scenes."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    train = _scenes(1, 96)
    network = _train(nn.Sequential(*layers, nn.Conv2d(16, 3, 1)), train, epochs=4)
    return edgeopt.segmentation(
        network, train, _scenes(2, 64), name="scenes", labels=SCENE_CLASSES, preprocessing=SCENES, licence="made up"
    )


def words():
    """Return the task of the words."""
    torch.manual_seed(0)
    train = _words(1, 240)
    network = _train(WordNetwork(), train, epochs=12)
    return edgeopt.classification(
        network, train, _words(2, 120), name="words", labels=tuple(WORDS), preprocessing=SOUNDS, licence="made up"
    )


def boxes():
    """Return the task of rectangles; its network has no weights to train."""

    def batch(seeds):
        drawn = [draw_rectangles(seed) for seed in seeds]
        images = torch.from_numpy(np.concatenate([input_of_pixels(pixels, IMAGES) for pixels, _ in drawn]))
        targets = [
            {
                "boxes": torch.tensor(list(found.values()), dtype=torch.float32),
                "labels": torch.tensor([COLORS.index(name) for name in found]),
            }
            for _, found in drawn
        ]
        return images, targets

    train, val = ([batch(range(start + at, start + at + 16)) for at in (0, 16)] for start in (100, 0))
    return edgeopt.detection(
        RectangleFinder(), train, val, name="boxes", labels=COLORS, preprocessing=IMAGES, licence="made up"
    )
