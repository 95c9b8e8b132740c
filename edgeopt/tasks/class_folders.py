"""Which images of a folder train, select and test: by its subfolders, or by a hash of their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from edgeopt.errors import DataError, did_you_mean
from edgeopt.tasks.image_files import IMAGE_ENDINGS
from edgeopt.tasks.name_hash import hash_percent

FolderPart = Literal["train", "selection", "test"]
_FOLDERS: dict[FolderPart, tuple[str, ...]] = {
    "train": ("train", "training"),
    "selection": ("val", "valid", "validation", "dev"),
    "test": ("test",),
}
_SELECTION_PERCENT, _TEST_PERCENT = 15, 15
"""Of all images, by the hash of their names."""


class LabelledFile(NamedTuple):
    """One image."""

    path: Path
    label: int


class ClassFolders(NamedTuple):
    """The images of a folder by what they are for."""

    classes: tuple[str, ...]
    parts: dict[FolderPart, tuple[LabelledFile, ...]]
    """In the order of the files' names; ``test`` may be empty."""


def find_class_folders(folder: Path, classes: Sequence[str] = ()) -> ClassFolders:
    """Return the images of a folder.

    It holds ``train/CLASS/*``, ``val/CLASS/*`` and perhaps ``test/CLASS/*``; or only ``CLASS/*``. Then 15 of 100 images
    select and 15 test, by the SHA-256 of a file's name, so that a new file moves no other one to another part, and
    files of one name are in one part. If only ``val`` is missing, 15 of 100 training images select.

    Args:
        folder: Files and folders whose names begin with a dot do not count, and subfolders of a class are read too.
        classes: In the order of the network's outputs; empty for the sorted names of the folders, as torchvision does.

    Raises:
        DataError: it does not exist, has no images that train or select, or has a class that is not known.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Give one that holds train/CLASS and val/CLASS, or CLASS folders.")
    named = {part: _subfolder(folder, names) for part, names in _FOLDERS.items()}
    train, selection, test = (named[part] for part in _FOLDERS)
    if train is None and (selection or test):
        raise DataError(f"{folder} has {(selection or test or folder).name}/CLASS, but no train/CLASS. Add it.")
    whole = train or folder
    found = tuple(classes) or tuple(path.name for path in _class_paths(whole))
    files = _list_images(whole, found)
    parts: dict[FolderPart, tuple[LabelledFile, ...]] = {"train": files, "selection": (), "test": ()}
    if train is None:
        shares = [(one, hash_percent(one.path.name)) for one in files]
        parts["test"] = tuple(one for one, percent in shares if percent < _TEST_PERCENT)
        limit = _TEST_PERCENT + _SELECTION_PERCENT
        parts["selection"] = tuple(one for one, percent in shares if _TEST_PERCENT <= percent < limit)
        parts["train"] = tuple(one for one, percent in shares if percent >= limit)
    else:
        parts["test"] = () if test is None else _list_images(test, found)
        if selection is None:
            parts["selection"] = tuple(one for one in files if hash_percent(one.path.name) < _SELECTION_PERCENT)
            parts["train"] = tuple(one for one in files if hash_percent(one.path.name) >= _SELECTION_PERCENT)
        else:
            parts["selection"] = _list_images(selection, found)
    _check(folder, found, parts, is_split=train is None or selection is None)
    return ClassFolders(found, parts)


def _check(
    folder: Path, classes: Sequence[str], parts: dict[FolderPart, tuple[LabelledFile, ...]], *, is_split: bool
) -> None:
    """Check that images train and select, and that there are several classes.

    Raises:
        DataError: they do not.
    """
    counts = ", ".join(f"{len(files)} for {part}" for part, files in parts.items())
    if not parts["train"] or not parts["selection"]:
        known = ", ".join(sorted(IMAGE_ENDINGS))
        advice = "Give more images, or a folder val/CLASS." if is_split and any(parts.values()) else f"Known: {known}."
        raise DataError(f"{folder} has too few images by class: {counts}. {advice}")
    if len(classes) < 2:
        raise DataError(f"{folder} has only the class '{classes[0]}'. Give one subfolder for each of several classes.")


def _subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the subfolder of a part; one that has no classes may be a class itself, such as pictures of trains."""
    return next((path for name in names if (path := folder / name).is_dir() and _class_paths(path)), None)


def _class_paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_images(folder: Path, classes: Sequence[str]) -> tuple[LabelledFile, ...]:
    """Return the images of each class.

    Raises:
        DataError: a subfolder has another name.
    """
    files = []
    for path in _class_paths(folder):
        if path.name not in classes:
            raise DataError(
                f"{path}: '{path.name}' is not one of the {len(classes)} classes{did_you_mean(path.name, classes)}. "
                "Name all of them with classes=, in the order of the network's outputs, or take the folder out."
            )
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in IMAGE_ENDINGS and one.is_file())
        label = classes.index(path.name)
        files += [LabelledFile(one, label) for one in inside if not _is_hidden(one.relative_to(folder))]
    return tuple(files)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
