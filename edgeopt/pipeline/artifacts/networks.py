"""The torch half of a candidate, memoized: group tables, trained networks, exported files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from edgeopt.bench.outputs import read_batches, run_model
from edgeopt.errors import ParityError, StepError
from edgeopt.export.parity import compare_arrays, unexplained_share
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.base import Record
from edgeopt.records.codec import digest, from_json, network_key
from edgeopt.records.groups import GroupTable
from edgeopt.records.recipe import Importance, TorchStep
from edgeopt.records.trial import Parity

PARITY_TOLERANCE = 1e-3
"""On the largest difference over an output's largest value. Right exports are within 1e-4, wrong ones beyond 0.1."""


class StoredNetwork(Record, frozen=True, kw_only=True):
    """A network of the workspace."""

    key: str | None
    """None is the original."""
    source: str
    parameters: int
    ratio: float
    """Parameters over the original's."""
    torch_score: float | None
    """Of its best epoch, as a module: it picks the epoch, it judges nothing."""
    proof_error: float | None
    notes: tuple[str, ...]
    seconds: float
    roundings: str | None = None
    """File in ``tables`` of what it was trained to round; None where its training rounded nothing."""


class ExportedFile(Record, frozen=True, kw_only=True):
    """A network as ONNX, equal to its module."""

    sha256: str
    exporter: Literal["dynamo", "torchscript", "given"]
    parities: tuple[Parity, ...]
    notes: tuple[str, ...]


def reference(build: Build, network: StoredNetwork) -> protocol.NetworkRef:
    """Return what a torch worker needs to load a network."""
    file = None if network.key is None else str(build.workspace.network(network.key))
    return protocol.NetworkRef(source=network.source, file=file)


def group_table_of(build: Build, network: StoredNetwork, importance: Importance) -> tuple[GroupTable, Path]:
    """Return a network's group table, and its file."""
    key = digest(("table", build.fingerprint, network.key, importance, build.versions))
    path = build.workspace.folder("tables") / f"{key}.json"
    if not path.exists():
        job = protocol.TableJob(network=reference(build, network), importance=importance, out=str(path))
        build.trainers.do(job, protocol.TableDone)
    return from_json(path.read_bytes(), GroupTable), path


def train_network(
    build: Build,
    parent: StoredNetwork,
    steps: tuple[TorchStep, ...],
    table_file: Callable[[], Path] | None,
    original_parameters: int,
    progress: Callable[[protocol.EpochProgress], None],
    roundings: Callable[[], tuple[Path, Path]] | None = None,
) -> StoredNetwork:
    """Return the network that ``steps`` make of ``parent``: from the ledger, or trained now (or further).

    Args:
        build: The build.
        parent: What it starts from.
        steps: What is done.
        table_file: Gives the parent's group table, for ``Prune``.
        original_parameters: Of the trained model.
        progress: Called with each epoch.
        roundings: Gives what the parent's int8 file rounds and the values there, for ``QuantizeAware``.
    """
    key = network_key(build.fingerprint, steps, build.seed, parent.key, build.versions)
    found = build.ledger.get("network", key, StoredNetwork)
    if found is not None and build.workspace.network(key).exists():
        return found
    places, values = (None, None) if roundings is None else roundings()
    job = protocol.TrainJob(
        parent=reference(build, parent),
        table=None if table_file is None else str(table_file()),
        steps=steps,
        seed=build.seed,
        checkpoint=str(build.workspace.folder("checkpoints") / f"{key}.safetensors"),
        teacher=str(build.workspace.folder("teacher") / build.fingerprint),
        out=str(build.workspace.network(key)),
        int8=None if places is None else protocol.Int8Reference(
            roundings=str(places), values=str(values), inputs=str(build.data.parity_file),
            expected=str(rounded_file(build, key)),
        ),
    )  # fmt: skip
    done = build.trainers.do(job, protocol.TrainDone, progress)
    found = StoredNetwork(
        key=key,
        source=done.source,
        parameters=done.parameters,
        ratio=done.parameters / original_parameters,
        torch_score=done.best_score,
        proof_error=done.proof_error,
        notes=done.notes,
        seconds=done.seconds,
        roundings=None if places is None else places.name,
    )
    build.ledger.put("network", key, found)
    return found


def expected_file(build: Build, network: StoredNetwork) -> Path:
    """Return where a network's own outputs on the parity inputs are kept."""
    return build.workspace.folder("arrays") / f"expected-{network.key or 'original'}-{build.fingerprint}.npz"


def rounded_file(build: Build, key: str) -> Path:
    """Return where the outputs of a network that was trained for int8 are kept, computed as in int8."""
    return build.workspace.folder("arrays") / f"rounded-{key}-{build.fingerprint}.npz"


def check_parity(build: Build, network: StoredNetwork, path: Path, stage: str, tolerance: float | None) -> Parity:
    """Compare a file's outputs with its network's own.

    Raises:
        ParityError: they differ by more than ``tolerance``.
    """
    expected, found = _own_outputs(build, expected_file(build, network)), _outputs(build, path, stage)
    return compare_arrays(expected, found, stage=stage, tolerance=tolerance)


def check_imitation(build: Build, network: StoredNetwork, path: Path, max_share: float) -> Parity:
    """Compare an int8 file's outputs with those of the module that was trained to compute as it does.

    Args:
        build: The build.
        network: Trained for int8.
        path: The file.
        max_share: Of what int8 changes, which may stay unexplained; see ``edgeopt.export.parity.unexplained_share``.

    Raises:
        ParityError: more of it does.
    """
    assert network.key is not None
    stage = "trained for"
    found, floats = _outputs(build, path, stage), _own_outputs(build, expected_file(build, network))
    imitated = _own_outputs(build, rounded_file(build, network.key))
    parity = compare_arrays(imitated, found, stage=stage, tolerance=None)
    share = unexplained_share(floats, imitated, found)
    if share > max_share:
        raise ParityError(
            stage, f"{share:.0%} of what int8 changes is not what training saw; {max_share:.0%} is allowed."
        )
    return parity


def _own_outputs(build: Build, file: Path) -> list[NDArray[Any]]:
    return [batch[name] for batch in read_batches(file) for name in build.data.task.output_names]


def _outputs(build: Build, path: Path, stage: str) -> list[NDArray[Any]]:
    """Run a file on the parity inputs."""
    outputs = path.with_suffix(".outputs.npz")
    try:
        run_step(stage, run_model, path, build.data.parity_file, outputs, build.connection, build.profile,
                 allow_fallback=build.allow_fallback)  # fmt: skip
        return _own_outputs(build, outputs)
    finally:
        outputs.unlink(missing_ok=True)


def export_network(build: Build, network: StoredNetwork) -> ExportedFile:
    """Return a network as ONNX: by the dynamo exporter, else (where it fails or its file is wrong) the TorchScript one.

    Raises:
        StepError: neither gives a file that computes what the network computes.
    """
    limits = (build.profile.max_opset, build.profile.max_ir)
    key = digest(("export", build.fingerprint, network.key, limits, build.versions))
    found = build.ledger.get("export", key, ExportedFile)
    if found is not None and build.workspace.artifact(found.sha256).exists():
        return found
    notes: list[str] = []
    for exporter in ("dynamo", "torchscript"):
        path = build.workspace.folder("stages") / f"{key}-{exporter}.onnx"
        job = protocol.ExportJob(
            network=reference(build, network),
            exporter=exporter,
            inputs=str(build.data.parity_file),
            expected=str(expected_file(build, network)),
            out=str(path),
            max_opset=build.profile.max_opset,
            max_ir=build.profile.max_ir,
        )
        try:
            done = build.trainers.do(job, protocol.ExportDone)
            parity = check_parity(build, network, path, "exported", PARITY_TOLERANCE)
        except (StepError, ParityError) as error:
            path.unlink(missing_ok=True)
            notes.append(f"the {exporter} exporter was not used: {error.reason}")
            last = error
            continue
        found = ExportedFile(
            sha256=build.workspace.keep_artifact(path),
            exporter="torchscript" if done.exporter == "torchscript" else "dynamo",
            parities=(parity,),
            notes=(*notes, *done.notes),
        )
        build.ledger.put("export", key, found)
        return found
    raise StepError("export", " ".join(notes), last.trace)
