"""``edgeopt init``: a task that runs unchanged, and an ``edgeopt.toml`` that names it."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.errors import InputError, WorkspaceError

TASK = '''"""A task for edgeopt: a trained classifier and its data. It runs as is; put your own into parts 1 and 2."""

import torch
from torch import nn

import edgeopt


def batches(seed: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """1. Your data: batches of (inputs, class numbers); a DataLoader is fine. Here: a bright row or column in noise."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        images = torch.randn(64, 1, 16, 16, generator=generator) * 0.7
        labels = torch.randint(0, 2, (64,), generator=generator)
        for image, label, at in zip(images, labels, torch.randint(0, 16, (64,), generator=generator), strict=True):
            image[0].select(int(label), int(at)).add_(1.5)
        result.append((images, labels))
    return result


def trained_model() -> nn.Module:
    """2. Your trained model; load your weights here. Here: a small network, trained for a few seconds."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for images, labels in batches(seed=1, count=40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


task = edgeopt.classification(
    trained_model,  # the network to make smaller
    lambda seed: batches(seed + 10, 40),  # an epoch to train on
    batches(seed=2, count=20),  # selection set: decides which trial wins
    test=batches(seed=3, count=20),  # test set: scored only once, at the end
    name="rows-and-columns",
    labels=("row", "column"),
    preprocessing="made-up numbers",  # for your images: edgeopt.ImagePreprocessing(height=224, width=224, mean=...)
)
'''

CONFIG = """# Defaults for `edgeopt build` in this folder and its subfolders. Options on the command line override them.

task = "my_task.py:task"  # a file and a name in it, module:name, or model.onnx
target = "phone"  # or several: ["car", "phone"]; `edgeopt targets list` shows them

[limits]  # a number, or "none" to waive a limit; the target decides the others
max_drop = 0.01  # how far the score may fall below the trained network's
# latency_ms = 20.0
# memory_mb = 50.0
# size_mb = 1.0
"""

CI_FILE = ".github/workflows/edgeopt.yml"
WORKFLOW = """\
# Verifies the bundle of `edgeopt build` in each pull request: its files, golden outputs and limits, and an A/B against
# that of the branch it goes to. Needs the bundle in the repository (large ones with Git LFS).
name: edgeopt
on: [pull_request]

jobs:
  check:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
        with: {lfs: true}
      - uses: actions/checkout@v4
        with: {ref: "${{ github.base_ref }}", path: released, lfs: true}
      - uses: actions/setup-python@v5
        with: {python-version: "3.12"}
      - run: pip install edgeopt
      - name: check
        run: |
          against=()
          if [ -f released/edgeopt-out/model.onnx ]; then
            against=(--against released/edgeopt-out --max-regression 5)
          fi
          edgeopt check edgeopt-out --runtime oldest "${against[@]}" \\
            --junit edgeopt-check.xml --summary "$GITHUB_STEP_SUMMARY"
      - uses: actions/upload-artifact@v4
        if: always()
        with: {name: edgeopt-check, path: edgeopt-check.xml}
"""

FILES = {"my_task.py": TASK, "edgeopt.toml": CONFIG}


@click.command(name="init")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path())
@click.option("--ci", is_flag=True, help=f"Write {CI_FILE} instead, which runs `edgeopt check` in pull requests.")
def command(folder: Path, ci: bool) -> None:
    """Write an example my_task.py and edgeopt.toml into FOLDER (default: the current one). Nothing is overwritten."""
    written = {CI_FILE: WORKFLOW} if ci else FILES
    for name in written:
        if (folder / name).exists():
            raise InputError(
                f"{folder / name} already exists and was not changed. Give another folder: `edgeopt init NAME`."
            )
    try:
        for name, text in written.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise WorkspaceError(f"{folder} cannot be written: {error.strerror}.") from None
    if ci:
        click.echo(f"wrote {folder / CI_FILE}: commit it together with the bundle, edgeopt-out")
        return
    change_folder = "" if folder == Path() else f"cd {folder} && "
    files = " and ".join(str(folder / name) for name in FILES)
    click.echo(f"wrote {files}; now run `{change_folder}edgeopt build --quick`")
