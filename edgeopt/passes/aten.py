"""``aten``: PyTorch's own operators, which make up a traced network."""

import torch

aten = torch.ops.aten
