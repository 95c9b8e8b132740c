"""``manifest.json``: what an app and a checker need to know about the folder, and the hash of every other file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from edgeopt.bundle.golden import GoldenEntry
from edgeopt.errors import DataError
from edgeopt.records.budget import Limit
from edgeopt.records.measurement import Device
from edgeopt.records.recipe import Recipe
from edgeopt.report.document import Document, Part, Span
from edgeopt.report.proof import proof

SCHEMA: Literal["edgeopt/manifest-1"] = "edgeopt/manifest-1"
NAME = "manifest.json"


class TensorInfo(Part, frozen=True):
    """An input or an output of the model."""

    name: str
    shape: tuple[int | str, ...]
    """A name stands for a dimension that is free."""
    dtype: str


class TaskInfo(Part, frozen=True):
    """What the task tells about its model; the rest of the manifest is known to the build."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    labels: tuple[str, ...] | None
    preprocessing: str | None
    """For people: how an app makes the inputs."""
    postprocessing: str | None


class FileEntry(Part, frozen=True):
    """One file of the bundle."""

    sha256: str
    size_bytes: int


class ProofEntry(Part, frozen=True):
    """One limit, measured."""

    limit: Limit
    label: str
    unit: Literal["ms", "bytes", "per_s", "score"]
    found: float | None
    ci95: Span | None
    allowed: float | None
    """null where the limit was waived by name."""
    floor: bool
    kept: bool | None


class Manifest(Part, frozen=True):
    """The bundle described; ``recipe`` and ``proof`` are null where nothing kept the budget."""

    schema: Literal["edgeopt/manifest-1"]
    task: str
    target: str
    device: Device
    proven_on_target: bool
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    labels: tuple[str, ...] | None
    preprocessing: str | None
    postprocessing: str | None
    golden: tuple[GoldenEntry, ...]
    recipe: Recipe | None
    proof: tuple[ProofEntry, ...] | None
    versions: dict[str, str]
    seeds: dict[str, int]
    command: str
    files: dict[str, FileEntry]


class BuildInfo(Part, frozen=True):
    """How the build was made, so that it can be made again."""

    versions: dict[str, str]
    seeds: dict[str, int]
    command: str


def build_manifest(
    folder: Path, document: Document, task: TaskInfo, build: BuildInfo, golden: tuple[GoldenEntry, ...]
) -> Manifest:
    """Describe the files that ``folder`` holds; the manifest itself is not among them."""
    winner = document.winner
    return Manifest(
        schema=SCHEMA,
        task=document.task,
        target=document.target,
        device=document.device,
        proven_on_target=document.proven_on_target,
        inputs=task.inputs,
        outputs=task.outputs,
        labels=task.labels,
        preprocessing=task.preprocessing,
        postprocessing=task.postprocessing,
        golden=golden,
        recipe=None if winner is None else winner.recipe,
        proof=None if winner is None else _proof(document),
        versions=build.versions,
        seeds=build.seeds,
        command=build.command,
        files=hash_files(folder),
    )


def _proof(document: Document) -> tuple[ProofEntry, ...]:
    rows = proof(document.winner, document.budget) if document.winner else ()
    return tuple(
        ProofEntry(
            limit=row.limit,
            label=row.label,
            unit=row.unit,
            found=row.found,
            ci95=row.interval,
            allowed=row.allowed,
            floor=row.floor,
            kept=row.kept,
        )
        for row in rows
    )


def hash_files(folder: Path) -> dict[str, FileEntry]:
    """Hash every file of a bundle but the manifest, by path relative to the bundle with forward slashes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size_bytes=path.stat().st_size
        )
        for path in paths
    }


def read_manifest(bundle: Path) -> Manifest:
    """Read a bundle's manifest.

    Raises:
        DataError: it is missing, or no document of this schema.
    """
    path = bundle / NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. A folder that `edgeopt build` wrote has one."
        ) from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is no {SCHEMA} document: {error}. Build it again.") from error


def changed_files(bundle: Path, manifest: Manifest) -> list[str]:
    """Name each file that is missing, added, or not what its hash says."""
    found = hash_files(bundle)
    return sorted(name for name in found.keys() | manifest.files if found.get(name) != manifest.files.get(name))
