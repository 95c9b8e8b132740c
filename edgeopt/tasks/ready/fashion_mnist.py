"""Fashion-MNIST as arrays: the full set if ``EDGEOPT_DATA`` holds it, otherwise the packaged subset.

The split is fixed: *selection* images are 500 of each class of the official training set, *training* images are the
rest of it, *test* images are the official test set. The packaged subset (``tools/make_fashion_subset.py``) has the
same selection images, 1,500 training images of each class and 200 test images of each class.
"""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError

Split = Literal["train", "selection", "test"]

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SELECTION_PER_CLASS = 500
SPLIT_SEED = 20261123
SUBSET_FILE = Path(__file__).parent / "data" / "fashion-mnist-subset.npz"


class Images(NamedTuple):
    """``images`` is uint8 ``(n, 28, 28)``; ``labels`` is int64 ``(n,)``, an index into ``CLASSES``."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def full_set_folder() -> Path | None:
    """Return the folder of the four official files, or None if ``EDGEOPT_DATA`` does not hold them."""
    root = os.environ.get("EDGEOPT_DATA")
    folder = Path(root) / "fashion-mnist" if root else None
    return folder if folder is not None and folder.is_dir() else None


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one gzipped IDX file of unsigned bytes (format: http://yann.lecun.com/exdb/mnist).

    Raises:
        DataError: the file is missing, is not gzip, or its length contradicts its header.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a gzipped IDX file ({error}). Download it again.") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DataError(f"{path}: not an IDX file of bytes (it starts with {raw[:4].hex()}). Download it again.")
    shape = tuple(np.frombuffer(raw, ">u4", count=raw[3], offset=4).astype(int).tolist())
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if body.size != np.prod(shape):
        raise DataError(f"{path}: has {body.size} bytes, but its header says {shape}. Download it again.")
    return body.reshape(shape).copy()  # writable, as torch requires


def read_official(folder: Path, part: Literal["train", "t10k"]) -> Images:
    """Read the official training (``train``) or test (``t10k``) files from ``folder``."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
    if images.shape != (len(labels), 28, 28):
        raise DataError(f"{folder}: {len(labels)} labels for images of shape {images.shape}. Download the files again.")
    return Images(images, labels)


def balanced_indices(labels: NDArray[np.int64], per_class: int, seed: int) -> NDArray[np.int64]:
    """Return ``per_class`` indices of each class, sorted; the choice depends only on ``seed`` and the labels."""
    random = np.random.RandomState(seed)  # its stream is frozen; a Generator's may change
    chosen = [random.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def split_official(folder: Path, split: Split) -> Images:
    """Return one split of the full set in ``folder``."""
    if split == "test":
        return read_official(folder, "t10k")
    images, labels = read_official(folder, "train")
    selection = balanced_indices(labels, SELECTION_PER_CLASS, SPLIT_SEED)
    if split == "selection":
        return Images(images[selection], labels[selection])
    rest = np.setdiff1d(np.arange(len(labels)), selection)
    return Images(images[rest], labels[rest])


def load_split(split: Split) -> Images:
    """Return one split: of the full set if ``EDGEOPT_DATA`` holds it, otherwise of the packaged subset.

    Raises:
        DataError: a file is missing or corrupted.
    """
    folder = full_set_folder()
    if folder is not None:
        return split_official(folder, split)
    try:
        with SUBSET_FILE.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Images(arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{SUBSET_FILE}: cannot be read ({error}). Reinstall edgeopt.") from error
