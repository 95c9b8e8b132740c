"""Images of several sizes with squares, maps of their classes with an ignored border, and a trained network."""

import torch
from torch import nn

IGNORED = 255
COLOURS = torch.eye(4)[:, 1:]


def batches(count, seed, sizes):
    own = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        masks = torch.zeros(8, height, width, dtype=torch.int64)
        for mask in masks:
            top = int(torch.randint(1, height - 9, (1,), generator=own))
            left = int(torch.randint(1, width - 9, (1,), generator=own))
            mask[top - 1 : top + 9, left - 1 : left + 9] = IGNORED
            mask[top : top + 8, left : left + 8] = int(torch.randint(1, 4, (1,), generator=own))
        noise = 0.2 * torch.randn(8, height, width, 3, generator=own)
        images = COLOURS[masks.where(masks != IGNORED, 0)] + noise
        found.append((images.permute(0, 3, 1, 2), masks))
    return found


train_loader = batches(12, 1, [(16, 16)])  # crops
val_loader = batches(6, 2, [(24, 32), (32, 24)])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(12, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Conv2d(36, 4, 1)

    def forward(self, image):
        fine = self.stem(image)
        coarse = nn.functional.interpolate(self.down(fine), size=fine.shape[-2:], mode="nearest")
        return self.head(torch.cat([fine, coarse], 1))


def load_model():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(3):
        for images, masks in train_loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), masks, ignore_index=IGNORED).backward()
            optimizer.step()
    return model
