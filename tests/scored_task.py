"""The task of ``tiny_bundles.a_bundle``: 2,000 points; the bundle's model gets a chosen number of the labels right.

It has no model and no training, because a check of the score needs neither.
"""

import textwrap
from pathlib import Path

import numpy as np
from tiny_models import a_run_target

from edgeopt.bench.outputs import read_batches, run_model, write_batches

SAMPLES = 2000

SOURCE = """
    from pathlib import Path
    import numpy as np
    import torch

    class Scored:
        name = "scored"
        input_names = ("x",)

        def __init__(self):
            stored = np.load(Path(__file__).with_name("scored.npz"))
            self.x, self.labels = torch.from_numpy(stored["x"]), stored["labels"]

        def example_inputs(self):
            return (self.x[:2],)

        def eval_batches(self):
            return [(self.x[at : at + 512], self.labels[at : at + 512]) for at in range(0, len(self.x), 512)]

        def sample_scores(self, pairs):
            return np.concatenate([(outputs.argmax(1) == labels).astype(float) for outputs, labels in pairs])

        def score(self, pairs):
            return float(self.sample_scores(pairs).mean())

        def build_model(self):
            return torch.nn.Linear(self.x.shape[1], 8)  # only the form of its outputs counts

        def _(self, *_):
            raise AssertionError("a check needs no training")

        train_batches = loss = _
"""


def write_scored_task(folder: Path, *, right: int, samples: int = SAMPLES, width: int = 32) -> str:
    """Write the task next to its data; return its ``--score`` for commands in ``folder``."""
    x = np.random.default_rng(1).standard_normal((samples, width)).astype(np.float32)
    labels = np.zeros(samples, np.int64)
    if width == 32:
        write_batches(folder / "scored-in.npz", [{"x": x}])
        run_model(folder / "m.onnx", folder / "scored-in.npz", folder / "scored-out.npz", a_run_target())
        labels = read_batches(folder / "scored-out.npz")[0]["y"].argmax(1)
        labels[right:] += 1
    np.savez(folder / "scored.npz", x=x, labels=labels)
    (folder / "scored.py").write_text(textwrap.dedent(SOURCE))
    return "scored.py:Scored"
