"""CamVid as arrays: 701 street scenes from a driving car with a class for each pixel (Brostow et al., 2009).

The images are 240x180, as ``tools/fetch_data.py`` shrinks them, and in ``camvid/CamVid`` of ``EDGEOPT_DATA``. The split
is that of SegNet (Badrinarayanan et al., 2017): 367 images train, 101 select, 233 test.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError

ScenePart = Literal["train", "selection", "test"]

SCENE_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
VOID = 11
"""The label of pixels that don't count."""
SCENE_SIZE = 180, 240
"""Height and width."""
_FOLDERS: dict[ScenePart, str] = {"train": "train", "selection": "val", "test": "test"}


class Scenes(NamedTuple):
    """``images`` is uint8 ``(n, 3, 180, 240)``, RGB; ``labels`` is uint8 ``(n, 180, 240)``, classes or ``VOID``."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def find_folder() -> Path | None:
    """Return the folder of the images and labels, or None if ``EDGEOPT_DATA`` does not hold it."""
    root = os.environ.get("EDGEOPT_DATA")
    folder = Path(root) / "camvid" / "CamVid" if root else None
    return folder if folder is not None and folder.is_dir() else None


def load_scenes(part: ScenePart) -> Scenes:
    """Return a part, in the order of the files' names.

    Raises:
        DataError: the data are not there, Pillow is missing, or a file is not what it should be.
    """
    folder = find_folder()
    if folder is None:
        raise DataError(
            "The street scenes are not there. `python tools/fetch_data.py DIR camvid` downloads them; then set "
            "EDGEOPT_DATA=DIR."
        )
    paths = sorted((folder / _FOLDERS[part]).glob("*.png"))
    if not paths:
        raise DataError(f"{folder / _FOLDERS[part]}: no .png files. Download the street scenes again.")
    images = [_read(path, "RGB").transpose(2, 0, 1) for path in paths]
    labels = [_read(folder / f"{_FOLDERS[part]}annot" / path.name, "L") for path in paths]
    highest = max(int(one.max()) for one in labels)
    if highest > VOID:
        raise DataError(f"{folder}: a label is {highest}, but there are only 0 to {VOID}. Download the scenes again.")
    return Scenes(np.stack(images), np.stack(labels))


def _read(path: Path, mode: str) -> NDArray[np.uint8]:
    """Return the pixels of a file."""
    try:
        from PIL import Image, UnidentifiedImageError  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise DataError("Reading the street scenes takes Pillow: pip install pillow.") from error
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image if image.mode == mode else image.convert(mode), dtype=np.uint8)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}). Download the street scenes again.") from error
    if pixels.shape[:2] != SCENE_SIZE:
        height, width = pixels.shape[:2]
        raise DataError(
            f"{path}: is {width}x{height}, not {SCENE_SIZE[1]}x{SCENE_SIZE[0]}. Download the street scenes again."
        )
    return pixels
