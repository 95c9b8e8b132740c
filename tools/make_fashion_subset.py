"""Make the Fashion-MNIST subset that ships with edgeopt, from the full set.

    EDGEOPT_DATA=DIR python tools/make_fashion_subset.py --out edgeopt/tasks/ready/data/fashion-mnist-subset.npz

It has all 5,000 selection images, 1,500 training images of each class and 200 official test images of each class.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from edgeopt.tasks.ready import fashion_mnist

TRAIN_PER_CLASS = 1500
TEST_PER_CLASS = 200


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=fashion_mnist.SUBSET_FILE, show_default=True)
def main(out: Path) -> None:
    """Write the three splits as one compressed .npz, and print their sizes."""
    folder = fashion_mnist.full_set_folder()
    if folder is None:
        raise click.UsageError("set EDGEOPT_DATA to the folder that holds fashion-mnist/ with the four .gz files.")
    arrays = {}
    for split, per_class in (("train", TRAIN_PER_CLASS), ("selection", None), ("test", TEST_PER_CLASS)):
        images, labels = fashion_mnist.split_official(folder, split)
        if per_class is not None:
            chosen = fashion_mnist.balanced_indices(labels, per_class, fashion_mnist.SPLIT_SEED)
            images, labels = images[chosen], labels[chosen]
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images, labels.astype(np.uint8)
        print(f"{split}: {len(labels)} images, {np.bincount(labels).tolist()} of each class")
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **arrays)
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
