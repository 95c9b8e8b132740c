"""A tiny detector of made-up scenes, for builds; its trained weights are in the file that DETECTOR_WEIGHTS names."""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

import box_scenes

import edgeopt
from edgeopt.tasks.networks.detector import SmallDetector


def make_detector():
    torch.manual_seed(0)
    return SmallDetector(2, stem=12, widths=(12, 16), pyramid=12)


def load_detector():
    detector = make_detector()
    detector.load_state_dict(load_file(os.environ["DETECTOR_WEIGHTS"]))
    return detector


def make_task(model=load_detector):
    return edgeopt.detection(
        model,
        box_scenes.batches(0, 128, 16),
        box_scenes.batches(1000, 64, 16),
        test=box_scenes.batches(2000, 64, 16),
        name="made-up boxes",
        training=edgeopt.Training(epochs=4, optimizer="adamw", learning_rate=5e-3, weight_decay=0.01, min_steps=0),
    )


if "DETECTOR_WEIGHTS" in os.environ:
    task = make_task()
