"""``aten``: PyTorch's own operators, which a traced network is made of."""

import torch

aten = torch.ops.aten
