"""Write the folder ``--out``: a choice and the winner's file go in; the bundle is written aside, then swapped in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from edgeopt.bundle.app_files import write_app_files
from edgeopt.bundle.golden import Golden, GoldenEntry, write_golden
from edgeopt.bundle.manifest import MANIFEST_NAME, Origin, build_manifest, hash_files
from edgeopt.bundle.sbom import SBOM_NAME, describe_parts
from edgeopt.bundle.signature import PrivateKey, sign_bundle
from edgeopt.bundle.swap import building_path, recover, swap_in
from edgeopt.errors import WorkspaceError
from edgeopt.model_files.layout import copy_model
from edgeopt.records.choice import Choice
from edgeopt.report.document import Document, build_document, encode
from edgeopt.report.page import render_page


def check_out(out: Path) -> None:
    """Make sure, before any work, that a bundle can be written to ``out``; clean up after a killed swap.

    The parent folder is made if it is missing.

    Raises:
        WorkspaceError: ``out`` is a file or holds something other than a bundle, or its parent is not writable.
    """
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        recover(out)
        probe = building_path(out)
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise WorkspaceError(
            f"--out {out} cannot be written: {error.strerror} ({error.filename}). Name a folder that you can write to."
        ) from error
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise WorkspaceError(f"--out {out} is not a folder. Name a folder, or a path that does not exist yet.")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_NAME).is_file():
        raise WorkspaceError(
            f"--out {out} holds files that edgeopt did not write (there is no {MANIFEST_NAME}), and a build replaces "
            "the whole folder. Name another folder, or empty this one yourself."
        )


def write_bundle(
    out: Path,
    choice: Choice,
    *,
    model: Path | None,
    golden: Golden,
    origin: Origin,
    key: PrivateKey | None = None,
    further: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """Write the bundle of a choice; at any moment ``out`` is the complete old bundle or the complete new one.

    Args:
        out: The folder; ``check_out`` says what it may hold.
        choice: The decision.
        model: The winner's file; None if there is no winner.
        golden: What an app checks itself with; ``NO_GOLDEN`` without a model.
        origin: The task's description of its model, and how the build was run.
        key: Signs the bundle; None for no signature.
        further: Other files of the model, such as those of ``choice.ort``, by their name in the bundle.

    Raises:
        WorkspaceError: the folder cannot be written; an old bundle is then still there.
    """
    check_out(out)
    out = out.absolute()
    new = building_path(out)
    try:
        new.mkdir()
        _fill(new, build_document(choice), model, golden, origin, further)
        if key is not None:
            sign_bundle(new, key)
        swap_in(new, out)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise WorkspaceError(
            f"The result could not be written to {out}: {error.strerror or error}. "
            "Every finished trial is kept: free space or name another --out, and run the same command again."
        ) from error


def _fill(
    new: Path,
    document: Document,
    model: Path | None,
    golden: Golden,
    origin: Origin,
    further: Mapping[str, Path],
) -> None:
    """Write every file of a bundle; the manifest comes last, because it has the hashes of the others."""
    entries: tuple[GoldenEntry, ...] = ()
    if model is not None and document.winner is not None:
        copy_model(model, new / "model.onnx")
        entries = write_golden(new, golden)
        for name, path in further.items():
            shutil.copyfile(path, new / name)
    (new / "choice.json").write_bytes(encode(document))
    (new / "report.html").write_text(render_page(document), encoding="utf-8")
    manifest = build_manifest(new, document, origin, entries, golden.answers)
    if document.winner is not None:
        write_app_files(new, document, manifest)
        (new / SBOM_NAME).write_bytes(encode(describe_parts(manifest, origin.time)))
        manifest = msgspec.structs.replace(manifest, files=hash_files(new))
    (new / MANIFEST_NAME).write_bytes(encode(manifest))
