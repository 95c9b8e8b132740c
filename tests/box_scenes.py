"""Made-up scenes with coloured rectangles, and a tiny detector that learns them in seconds."""

import torch

from edgeopt.tasks.networks.detector import SmallDetector

HEIGHT, WIDTH = 48, 64
COLOURS = torch.tensor([[1.5, -0.5, -0.5], [-0.5, 1.5, -0.5]])


def draw_scene(seed):
    """Return an image with up to three rectangles apart from each other, and their boxes."""
    own = torch.Generator().manual_seed(seed)
    count = int(torch.randint(0, 4, (1,), generator=own))
    image = 0.2 * torch.randn(3, HEIGHT, WIDTH, generator=own)
    labels = torch.randint(0, 2, (count,), generator=own)
    boxes = torch.zeros(count, 4)
    for row, slot in enumerate(torch.randperm(4, generator=own)[:count]):
        width, height = (int(size) for size in torch.randint(8, 22, (2,), generator=own))
        left = int(slot % 2) * WIDTH // 2 + int(torch.randint(0, WIDTH // 2 - width, (1,), generator=own))
        top = int(slot // 2) * HEIGHT // 2 + int(torch.randint(0, HEIGHT // 2 - height, (1,), generator=own))
        image[:, top : top + height, left : left + width] += COLOURS[labels[row]][:, None, None]
        boxes[row] = torch.tensor([left, top, left + width, top + height])
    return image, {"boxes": boxes, "labels": labels}


def batches(start, count, size=8):
    """Return scenes as loaders of detectors yield them: lists of images and of dicts."""
    scenes = [draw_scene(seed) for seed in range(start, start + count)]
    return [tuple(zip(*scenes[first : first + size], strict=True)) for first in range(0, count, size)]


def tiny_detector():
    torch.manual_seed(0)
    return SmallDetector(2, stem=16, widths=(16, 24), pyramid=16)


def learn(model, task, epochs, rate=5e-3, teacher=None):
    """Train a network by the loss of a task, or of its teacher's part; return the loss of each step."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), rate), []
    model.train()
    for epoch in range(epochs):
        for images, targets in task.train_batches(epoch):
            outputs = model(images)
            if teacher is None:
                loss = task.loss(outputs, targets)
            else:
                with torch.no_grad():
                    taught = teacher(images)
                loss = task.distill_loss(outputs, taught, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def score_of(model, task):
    model.eval()
    with torch.no_grad():
        return task.score(
            [
                ({name: value.numpy() for name, value in model(images).items()}, targets)
                for images, targets in task.eval_batches()
            ]
        )
