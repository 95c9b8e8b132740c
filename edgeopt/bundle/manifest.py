"""``manifest.json``: describes the bundle to an app and to a checker, with the hash of every other file.

The written folder and its document go in, a ``Manifest`` comes out. For schemas, see ``edgeopt.report.document``.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec
import onnx
import onnx.helper

from edgeopt.bundle.box_answers import BoxMaps
from edgeopt.bundle.golden import GoldenAnswer, GoldenEntry
from edgeopt.errors import ConfigError
from edgeopt.model_files.layout import hash_of_file
from edgeopt.records.budget import Limit
from edgeopt.records.choice import OrtFile
from edgeopt.records.measurement import DeviceInfo
from edgeopt.records.preprocessing import Preprocessing
from edgeopt.records.profile import Profile
from edgeopt.records.recipe import Recipe
from edgeopt.report.document import Document, read_part
from edgeopt.report.parts import Part, Span
from edgeopt.report.proof import build_proof

_SCHEMA: Literal["edgeopt/manifest-3"] = "edgeopt/manifest-3"
MANIFEST_NAME = "manifest.json"
SAMPLES_FOLDER = "samples"
SIGNATURE_NAME = "model.sig"


class TensorInfo(Part, frozen=True, kw_only=True):
    """An input or an output of the model."""

    name: str
    shape: tuple[int | str, ...]
    """A name stands for a dynamic dimension."""
    dtype: str
    value_range: Span | None = None
    """Of an input: the smallest and largest value of the samples on which the build judged."""
    class_axis: int | None = None
    """Of an output of scores for classes: the dimension that has the classes."""
    preprocessing: Preprocessing | None = None
    """Of an input: how an app makes it from an image or a sound; null if the task doesn't say it as data."""
    next_value: str | None = None
    """Of an input that is a state: the output that is its value for the next chunk."""
    begins_with_zeros: bool | None = None
    """Of a state: whether it is zeros before the first chunk."""


class DynamicDimension(Part, frozen=True, kw_only=True):
    """A dimension of the inputs besides the batch whose size may change."""

    name: str
    """As in the shapes."""
    min_size: int
    max_size: int | None
    """null: no limit."""
    judged_at: tuple[int, ...]
    """Sizes at which latency and memory were measured."""


class Origin(Part, frozen=True, kw_only=True):
    """Where a bundle comes from: the task's description of its model, and how the build was run."""

    labels: tuple[str, ...]
    """Of the classes, in the order of the output; empty if there are none."""
    preprocessing: str
    """For people: how an app prepares the inputs."""
    postprocessing: str
    """For people: how an app reads the outputs."""
    versions: dict[str, str]
    """Of every package that took part in making the file."""
    min_onnxruntime: str
    """The oldest that the target names: the file keeps to what it loads."""
    seed: int
    command: str
    dynamic: tuple[DynamicDimension, ...] = ()
    """Of the inputs, besides the batch."""
    value_ranges: dict[str, Span] = msgspec.field(default_factory=dict)
    """By input."""
    class_axes: dict[str, int] = msgspec.field(default_factory=dict)
    """By output of scores for classes: the dimension that has the classes."""
    boxes: BoxMaps | None = None
    """How boxes are read from the outputs, if the task says it as data."""
    input_preprocessing: dict[str, Preprocessing] = msgspec.field(default_factory=dict)
    """By input: the same as ``preprocessing``, as data."""
    states: dict[str, str] = msgspec.field(default_factory=dict)
    """Inputs that are states to the outputs that are their next values."""
    zero_states: tuple[str, ...] = ()
    """Those that are zeros before the first chunk."""
    licence: str = ""
    """Of the model and the data it was trained on; empty if the task doesn't say."""
    names: dict[str, str] = msgspec.field(default_factory=dict)
    """Of the winner's inner values: short name to the one that it stands for."""
    profile: Profile | None = None
    """The target, as the user gave it."""
    time: str = ""
    """When the bundle is written, in UTC (ISO 8601); empty if that isn't known."""


class FileEntry(Part, frozen=True, kw_only=True):
    """One file of the bundle."""

    sha256: str
    size_bytes: int


class ProofEntry(Part, frozen=True, kw_only=True):
    """One limit and the measured value."""

    limit: Limit
    label: str
    unit: Literal["ms", "bytes", "per_s", "score"]
    found: float | None
    ci95: Span | None
    allowed: float | None
    """null if the limit was waived by name."""
    floor: bool
    kept: bool | None
    runtime_bytes: int | None = None
    """Of the size, what ``found`` has of the runtime; null if the limit is about the model alone."""


class Manifest(Part, frozen=True, kw_only=True):
    """The description of a bundle; ``recipe`` and ``proof`` are null if no trial keeps the limits."""

    schema: Literal["edgeopt/manifest-3"]
    task: str
    target: str
    device: DeviceInfo
    proven_on_target: bool
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    labels: tuple[str, ...]
    preprocessing: str
    postprocessing: str
    golden: tuple[GoldenEntry, ...]
    answers: tuple[GoldenAnswer, ...]
    """Of the golden inputs."""
    licence: str
    """Of the model and the data it was trained on; empty if the task doesn't say."""
    recipe: Recipe | None
    proof: tuple[ProofEntry, ...] | None
    versions: dict[str, str]
    seeds: dict[str, int]
    command: str
    files: dict[str, FileEntry]
    dynamic: tuple[DynamicDimension, ...] = ()
    """Of the inputs, besides the batch."""
    min_onnxruntime: str = ""
    """The oldest that the target names: the file keeps to the operators and the format that it loads."""
    names: dict[str, str] = msgspec.field(default_factory=dict)
    """What the short names of the model's inner values stand for; empty if they kept their names."""
    ort: OrtFile | None = None
    """The model in ONNX Runtime's own format; null if the bundle has none."""
    boxes: BoxMaps | None = None
    """How an app reads boxes from the outputs; null if they give none, or if the task's own ``decode`` reads them."""
    profile: dict[str, Any] | None = None
    """The target with all its settings, so that the bundle is checked alike where no file of its target is."""

    def read_profile(self) -> Profile | None:
        """Return the target as it was when the bundle was built; None if the bundle does not have it.

        Raises:
            ConfigError: it has settings that this version does not know, or other values.
        """
        try:
            return None if self.profile is None else msgspec.convert(self.profile, Profile)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"the bundle's target '{self.target}' was written by another version of edgeopt ({error}). Name a "
                "target with --target."
            ) from error


def build_manifest(
    folder: Path,
    document: Document,
    origin: Origin,
    golden: tuple[GoldenEntry, ...] = (),
    answers: tuple[GoldenAnswer, ...] = (),
) -> Manifest:
    """Describe the files in ``folder``, except the manifest itself."""
    winner = document.winner
    inputs, outputs = describe_tensors(folder / "model.onnx") if winner else ((), ())
    return Manifest(
        schema=_SCHEMA,
        task=document.task,
        target=document.target,
        device=document.device,
        proven_on_target=document.proven_on_target,
        inputs=tuple(
            msgspec.structs.replace(
                info,
                value_range=origin.value_ranges.get(info.name),
                preprocessing=origin.input_preprocessing.get(info.name),
                next_value=origin.states.get(info.name),
                begins_with_zeros=info.name in origin.zero_states if info.name in origin.states else None,
            )
            for info in inputs
        ),
        outputs=tuple(msgspec.structs.replace(info, class_axis=origin.class_axes.get(info.name)) for info in outputs),
        labels=origin.labels,
        preprocessing=origin.preprocessing,
        postprocessing=origin.postprocessing,
        golden=golden,
        answers=answers,
        licence=origin.licence,
        recipe=None if winner is None else winner.recipe,
        proof=None if winner is None else _proof(document),
        versions=origin.versions,
        seeds={"build": origin.seed} if winner is None else {"build": origin.seed, "winner": winner.recipe.seed},
        command=origin.command,
        files=hash_files(folder),
        dynamic=origin.dynamic,
        min_onnxruntime=origin.min_onnxruntime,
        names=origin.names,
        ort=document.ort,
        boxes=origin.boxes,
        profile=None if origin.profile is None else msgspec.to_builtins(origin.profile),
    )


def describe_tensors(model: Path) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Read the names, shapes and types of a model's inputs and outputs from its file."""
    graph = onnx.load(model, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}  # old files list weights among the inputs
    inputs = tuple(describe_tensor(value) for value in graph.input if value.name not in weights)
    return inputs, tuple(describe_tensor(value) for value in graph.output)


def describe_tensor(value: onnx.ValueInfoProto) -> TensorInfo:
    """Read the name, shape and type of an input or output that is a tensor of numbers."""
    kind = value.type.tensor_type
    shape = tuple(
        int(size.dim_value) if size.HasField("dim_value") else str(size.dim_param or "?") for size in kind.shape.dim
    )
    return TensorInfo(name=value.name, shape=shape, dtype=onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name)


def _proof(document: Document) -> tuple[ProofEntry, ...]:
    rows = build_proof(document.winner, document.budget) if document.winner else ()
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
            runtime_bytes=document.budget.runtime_size_bytes if row.limit == "size" else None,
        )
        for row in rows
    )


def hash_files(folder: Path, manifest: Manifest | None = None) -> dict[str, FileEntry]:
    """Hash every file of a bundle except the manifest and the signature.

    Keys are paths relative to the bundle, with forward slashes. Files that a manifest lacks are left out below
    ``samples``: there an app's developer adds packages.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for name in (MANIFEST_NAME, SIGNATURE_NAME):
        paths.pop(name, None)
    return {
        name: FileEntry(sha256=hash_of_file(path), size_bytes=path.stat().st_size)
        for name, path in paths.items()
        if manifest is None or name in manifest.files or not name.startswith(f"{SAMPLES_FOLDER}/")
    }


def read_manifest(bundle: Path) -> Manifest:
    """Read a bundle's manifest.

    Raises:
        DataError: see ``edgeopt.report.document.read_part``.
    """
    return read_part(bundle / MANIFEST_NAME, Manifest, _SCHEMA)


def find_changed_files(bundle: Path, manifest: Manifest) -> list[str]:
    """Name each file that is missing, added, or differs from its hash; others may be added to the samples.

    A link that was added counts as a file, even if it leads to a folder or to nothing.
    """
    files = hash_files(bundle, manifest)
    changed = {name for name in files.keys() | manifest.files if files.get(name) != manifest.files.get(name)}
    return sorted(changed.union(find_added_links(bundle, manifest)))


def find_added_links(bundle: Path, manifest: Manifest) -> list[str]:
    """Name the links that were added outside the samples, whatever they lead to."""
    links = [path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_symlink()]
    own = {MANIFEST_NAME, SIGNATURE_NAME, *manifest.files}
    return sorted(name for name in links if name not in own and not name.startswith(f"{SAMPLES_FOLDER}/"))


def find_added_samples(bundle: Path, manifest: Manifest) -> list[str]:
    """Name what was added to the samples; a folder that has no file of the bundle stands for all that is in it."""
    folders = {parent.as_posix() for name in manifest.files for parent in PurePosixPath(name).parents}
    own = {SAMPLES_FOLDER, *folders, *manifest.files}
    added = set[str]()
    for path in (bundle / SAMPLES_FOLDER).rglob("*"):
        name = PurePosixPath(path.relative_to(bundle).as_posix())
        if name.as_posix() not in own and name.parent.as_posix() in own:
            added.add(name.as_posix())
    return sorted(added)
