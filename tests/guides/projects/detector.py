"""A detector in the manner of torchvision: it takes targets for its loss, and gives a list of dicts otherwise."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

STRIDE, SIZE, CLASSES = 4, 24, 2
COLOURS = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])


def scene(seed):
    """Return an image with up to three squares of 8 pixels at multiples of the stride, and their boxes."""
    own = torch.Generator().manual_seed(seed)
    count = int(torch.randint(0, 4, (1,), generator=own))
    image = 0.1 * torch.randn(3, SIZE, SIZE, generator=own)
    cells = torch.randperm(9, generator=own)[:count]
    labels = torch.randint(0, CLASSES, (count,), generator=own)
    boxes = torch.zeros(count, 4)
    for row, (cell, label) in enumerate(zip(cells, labels, strict=True)):
        left, top = 8 * int(cell % 3), 8 * int(cell // 3)
        image[:, top : top + 8, left : left + 8] += COLOURS[label][:, None, None]
        boxes[row] = torch.tensor([left, top, left + 8, top + 8])
    return image, {"boxes": boxes, "labels": labels}


def collate(samples):
    return tuple(zip(*samples, strict=True))


train_loader = DataLoader([scene(seed) for seed in range(96)], 16, collate_fn=collate)
val_loader = DataLoader([scene(seed) for seed in range(1000, 1048)], 16, collate_fn=collate)


def centers(boxes):
    """Return column and row of the cell in which each box has its center."""
    return ((boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE).long().T


def detection_loss(logits, boxes, targets):
    """Return the loss of objects in cells and of their boxes, as offsets from the cell in strides."""
    wanted, distance = torch.zeros_like(logits), logits.new_zeros(())
    for number, target in enumerate(targets):
        columns, rows = centers(target["boxes"])
        wanted[number, target["labels"], rows, columns] = 1
        corners = torch.stack([columns, rows, columns, rows], 1) * STRIDE
        distance = distance + (boxes[number, :, rows, columns].T - (target["boxes"] - corners) / STRIDE).abs().sum()
    return nn.functional.binary_cross_entropy_with_logits(logits, wanted, pos_weight=logits.new_tensor(8.0)) + (
        distance / max(1, sum(len(target["labels"]) for target in targets))
    )


def decode(logits, boxes, threshold=0.3):
    """Return a dict for each image: cells above the threshold and above their neighbours."""
    found = []
    for scores, offsets in zip(1 / (1 + np.exp(-logits)), boxes, strict=True):
        padded = np.pad(scores.max(0), 1)
        around = np.max([padded[r : r + 6, c : c + 6] for r in range(3) for c in range(3)], 0)
        labels, rows, columns = np.nonzero((scores >= threshold) & (scores == around))
        corners = np.stack([columns, rows, columns, rows], 1)
        found.append(
            {
                "scores": scores[labels, rows, columns],
                "labels": labels,
                "boxes": (offsets[:, rows, columns].T + corners) * STRIDE,
            }
        )
    return found


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32),
            nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.classes, self.boxes = nn.Conv2d(32, CLASSES, 1), nn.Conv2d(32, 4, 1)

    def forward(self, images, targets=None):
        features = self.backbone(torch.stack(list(images)))
        logits, boxes = self.classes(features), self.boxes(features)
        if self.training:
            return {"loss": detection_loss(logits, boxes, targets)}
        return decode(logits.detach().numpy(), boxes.detach().numpy())


def train():
    torch.manual_seed(0)
    detector = Detector()
    optimizer = torch.optim.Adam(detector.parameters(), 1e-2)
    for _ in range(12):
        for images, targets in train_loader:
            optimizer.zero_grad()
            detector(images, targets)["loss"].backward()
            optimizer.step()
    torch.save(detector.state_dict(), "detector.pt")
