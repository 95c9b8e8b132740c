"""Tasks of networks with dynamic dimensions: text of any length, images of any size, a stream with a state."""

import torch
from torch import nn

from edgeopt.task import Training


def fit(model, batches, loss, *, epochs=6, rate=3e-3):
    """Train a network for a moment."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    model.train()
    for _ in range(epochs):
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss(model(**inputs), targets).backward()
            optimizer.step()
    return model.eval()


class Encoder(nn.Module):
    """A small BERT: token and position embeddings, two layers with a padding mask, and a pooled answer."""

    def __init__(self, width=32, heads=2, layers=2):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(64, width), nn.Embedding(64, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, 3)

    def forward(self, input_ids, attention_mask):
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.tokens(input_ids) + self.positions(positions))
        hidden = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, hidden)
        mask = attention_mask[..., None].to(x.dtype)
        return {"logits": self.head((x * mask).sum(1) / mask.sum(1)), "last_hidden_state": x}


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each with a residual connection and a norm."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output, self.up, self.down = (
            nn.Linear(width, width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, hidden):
        batch, length, width = x.shape
        q, k, v = (
            part(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5 + hidden
        context = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        x = self.first(x + self.output(context))
        return self.second(x + self.down(nn.functional.gelu(self.up(x))))


def sentences(count, seed, size=32):
    """Return dict batches, each of one length: the answer is the third of the vocabulary that most tokens are from."""
    own = torch.Generator().manual_seed(seed)
    batches = []
    for index in range(count // size):
        length = (8, 16, 24, 12)[index % 4]
        labels = torch.randint(0, 3, (size,), generator=own)
        ids = torch.randint(0, 64, (size, length), generator=own)
        common = labels[:, None] * 21 + torch.randint(0, 21, (size, length), generator=own)
        ids = torch.where(torch.rand(size, length, generator=own) < 0.5, common, ids)
        mask = (torch.arange(length) < torch.randint(length // 2, length + 1, (size, 1), generator=own)).long()
        batches.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
    return batches


class TextTask:
    """A text classifier with dict batches and dict outputs."""

    name = "text"
    training = Training(epochs=2, learning_rate=1e-3, optimizer="adamw")
    dynamic_axes = {"input_ids": {1: ("length", 1, 64)}, "attention_mask": {1: "length"}}  # noqa: RUF012

    def build_model(self):
        torch.manual_seed(0)
        batches = [({k: v for k, v in b.items() if k != "labels"}, b["labels"]) for b in sentences(512, 1)]
        return fit(Encoder(), batches, self.loss)

    def example_inputs(self):
        return {key: value[:8] for key, value in sentences(64, 3)[1].items() if key != "labels"}

    def train_batches(self, seed):
        return sentences(512, seed + 10)

    def eval_batches(self):
        return sentences(256, 2)

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs["logits"], targets)

    def score(self, pairs):
        return float(self.sample_scores(pairs).mean())

    def sample_scores(self, pairs):
        import numpy as np

        return np.concatenate([outputs["logits"].argmax(1) == labels for outputs, labels in pairs]).astype(float)


class Segmenter(nn.Module):
    """A fully convolutional network with a skip connection, for images of any even size."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.head = nn.Conv2d(3 * width, 4, 1)

    def forward(self, image):
        fine = self.stem(image)
        coarse = self.body(self.down(fine))
        coarse = nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(torch.cat([fine, coarse], 1))


def scenes(count, seed, size=8):
    """Return images of several sizes with one square of a class's colour, and maps of the classes."""
    own = torch.Generator().manual_seed(seed)
    batches = []
    for index in range(count // size):
        height, width = ((24, 32), (32, 32), (16, 40))[index % 3]
        masks = torch.zeros(size, height, width, dtype=torch.int64)
        for sample in range(size):
            top, left = (
                int(torch.randint(0, height - 8, (1,), generator=own)),
                int(torch.randint(0, width - 8, (1,), generator=own)),
            )
            masks[sample, top : top + 8, left : left + 8] = int(torch.randint(1, 4, (1,), generator=own))
        colours = torch.eye(4)[:, 1:]
        images = colours[masks].permute(0, 3, 1, 2) + 0.4 * torch.randn(size, 3, height, width, generator=own)
        batches.append((images, masks))
    return batches


class SceneTask:
    """Segmentation of images of any size, scored by mean IoU, which is no mean over samples."""

    name = "scenes"
    training = Training(epochs=2, learning_rate=0.02)
    dynamic_axes = {"input": {2: ("height", 8, 256), 3: ("width", 8, 256)}}  # noqa: RUF012

    def build_model(self):
        torch.manual_seed(0)
        return fit(Segmenter(), [({"image": x}, y) for x, y in scenes(96, 1)], self.loss, epochs=4)

    def example_inputs(self):
        return scenes(8, 3)[0][0]

    def train_batches(self, seed):
        return scenes(96, seed + 10)

    def eval_batches(self):
        return scenes(96, 2)

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    def score(self, pairs):
        import numpy as np

        counts = np.zeros((4, 4))
        for outputs, masks in pairs:
            np.add.at(counts, (masks.ravel(), outputs.argmax(1).ravel()), 1)
        inside = np.diag(counts)
        return float(np.mean(inside / np.maximum(counts.sum(0) + counts.sum(1) - inside, 1)))


class Keyword(nn.Module):
    """One chunk of a stream: a convolution over what came before and the chunk, then a recurrent layer."""

    def __init__(self, width=32):
        super().__init__()
        self.features = nn.Conv1d(8, width, 3)
        self.rnn, self.head = nn.GRU(width, width), nn.Linear(width, 4)

    def forward(self, chunk, past, state):
        """Take a chunk ``(batch, 8, time)``, the last two frames before it, and the state ``(1, batch, width)``."""
        frames = torch.cat([past, chunk], 2)
        values, state = self.rnn(torch.relu(self.features(frames)).permute(2, 0, 1), state)
        return self.head(values[-1]), frames[:, :, -2:], state


def chunks(count, seed, size=32):
    """Return chunks of several lengths, with states of what was heard before."""
    own = torch.Generator().manual_seed(seed)
    patterns = torch.randn(4, 8, generator=torch.Generator().manual_seed(99))
    batches = []
    for index in range(count // size):
        time = (10, 16, 6)[index % 3]
        labels = torch.randint(0, 4, (size,), generator=own)
        chunk = patterns[labels][:, :, None] + 1.5 * torch.randn(size, 8, time, generator=own)
        inputs = {
            "chunk": chunk,
            "past": torch.zeros(size, 8, 2),
            "state": 0.1 * torch.randn(1, size, 32, generator=own),
        }
        batches.append((inputs, labels))
    return batches


class StreamTask:
    """A streaming network: states are inputs and outputs, with the batch in dimension 1 of one of them."""

    name = "stream"
    training = Training(epochs=2, learning_rate=0.02)
    dynamic_axes = {"chunk": {2: ("time", 2, 100)}}  # noqa: RUF012
    output_names = ("logits", "past_out", "state_out")

    def build_model(self):
        torch.manual_seed(0)
        return fit(Keyword(), chunks(512, 1), self.loss, epochs=3)

    def example_inputs(self):
        inputs, _ = chunks(32, 3)[0]
        return {"chunk": inputs["chunk"][:8], "past": inputs["past"][:8], "state": inputs["state"][:, :8]}

    def train_batches(self, seed):
        return chunks(512, seed + 10)

    def eval_batches(self):
        return chunks(256, 2)

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs[0], targets)

    def score(self, pairs):
        return float(self.sample_scores(pairs).mean())

    def sample_scores(self, pairs):
        import numpy as np

        return np.concatenate([outputs[0].argmax(1) == labels for outputs, labels in pairs]).astype(float)


text, scene, stream = TextTask(), SceneTask(), StreamTask()
