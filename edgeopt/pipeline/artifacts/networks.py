"""Networks of a build, made by torch processes and kept: their group tables and exported files.

Parity is checked here too: a file's outputs against the outputs of the network itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from numpy.typing import NDArray

from edgeopt.bench.outputs import read_batches, run_model
from edgeopt.errors import CrashError, ParityError, StepError
from edgeopt.export.parity import check_edge_outputs, compare_arrays, unexplained_ratio
from edgeopt.model_files.layout import remove_model
from edgeopt.pipeline.artifacts.device_parity import host_target
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.base import Record
from edgeopt.records.codec import from_json
from edgeopt.records.groups import Branch, ChannelGroup, GroupTable, WeightShape
from edgeopt.records.recipe import Importance
from edgeopt.records.scoring import ScoreFloor
from edgeopt.records.trial import EdgeInput, Parity
from edgeopt.store.keys import Key

PARITY_TOLERANCE = 1e-3
"""On the largest difference over an output's largest value. Right exports are within 1e-4, wrong ones beyond 0.1."""


class StoredNetwork(Record, frozen=True, kw_only=True):
    """A network in the workspace."""

    key: str | None
    """None for the original."""
    source: str
    parameters: int
    ratio: float
    """Its parameters over the original's."""
    torch_score: float | None
    """Of the epoch that was kept, as a module: it only helps to choose it."""
    proof_error: float | None
    notes: tuple[str, ...]
    seconds: float
    fake_quant_sites: str | None = None
    """File in ``tables`` with the sites that were rounded in its training; None if none were."""
    stopped_for: ScoreFloor | None = None
    """The score that it could not reach, so that its training ended early; None if it was trained to its end."""
    ended_after: int | None = None
    """Epochs after which its training was cut off, because the time was over; None if it was not."""
    input_size: tuple[int, int] | None = None
    """Height and width to which it shrinks its image first; None: as it comes."""


class ExportedFile(Record, frozen=True, kw_only=True):
    """A network as ONNX, equal to its module."""

    sha256: str
    exporter: Literal["dynamo", "torchscript", "given"]
    parities: tuple[Parity, ...]
    notes: tuple[str, ...]
    edge_inputs: tuple[EdgeInput, ...] = ()
    """The last batches of its network's parity inputs."""
    rounding: dict[str, float] = msgspec.field(default_factory=dict)
    """The network's own error of rounding, by output; see ``edgeopt.export.parity.widen_tolerance``."""
    parameters: int | None = None
    """Of its network; None for a given file."""
    merged_sums: int = 0
    """Sums of parallel branches that are one convolution each in the file, and are not in the trained model."""


class ExportedNetwork(NamedTuple):
    """A network and its file."""

    network: StoredNetwork
    exported: ExportedFile


def original_network(source: str, parameters: int) -> StoredNetwork:
    """Return the network that every candidate is compared with."""
    return StoredNetwork(
        key=None, source=source, parameters=parameters, ratio=1.0, torch_score=None, proof_error=None, notes=(),
        seconds=0.0,
    )  # fmt: skip


def reference(build: Build, network: StoredNetwork) -> protocol.NetworkRef:
    """Return what a torch process needs to load a network."""
    file = None if network.key is None else str(build.workspace.network(network.key))
    return protocol.NetworkRef(source=network.source, file=file, input_size=network.input_size)


def group_table_of(build: Build, network: StoredNetwork, importance: Importance) -> tuple[GroupTable, Path]:
    """Return a network's group table, and its file."""
    form = (ChannelGroup.__struct_fields__, WeightShape.__struct_fields__, Branch.__struct_fields__)
    key = build.keys.of("group-table", network=network.key, importance=importance, form=form)
    path = build.workspace.folder("tables") / f"{key.digest}.json"
    if not path.exists():
        job = protocol.TableJob(network=reference(build, network), importance=importance, out=str(path))
        build.torch_pool.do(job, protocol.TableDone)
    return from_json(path.read_bytes(), GroupTable), path


def parity_inputs_file(build: Build, network: StoredNetwork) -> Path:
    """Return the path of the inputs on which a network's files are compared with it: examples, then edge inputs."""
    return build.workspace.folder("arrays") / f"compared-{network.key or network.source}-{build.fingerprint}.npz"


def expected_file(build: Build, network: StoredNetwork) -> Path:
    """Return the path of a network's own outputs on the parity inputs."""
    return build.workspace.folder("arrays") / f"expected-{network.key or network.source}-{build.fingerprint}.npz"


def fake_quantized_outputs_file(build: Build, key: str) -> Path:
    """Return the path of the outputs of a network that was trained for int8, computed with its roundings."""
    return build.workspace.folder("arrays") / f"fake-quantized-{key}-{build.fingerprint}.npz"


def check_parity(
    build: Build,
    network: StoredNetwork,
    path: Path,
    stage: str,
    tolerance: float | None,
    edge_inputs: Sequence[EdgeInput],
    rounding: Mapping[str, float],
) -> Parity:
    """Compare a file's outputs with its network's own, on examples and on edge inputs.

    The network's own error of rounding widens the tolerance on examples. On edge inputs it does not: those that count
    are inputs on which rounding decides nothing.

    Args:
        build: The build.
        network: Whose outputs were written when it was exported.
        path: The file.
        stage: What made it, for errors and the report.
        tolerance: Largest difference relative to the largest value of an output; None if the score decides.
        edge_inputs: Those on which the network is finite, in the order of the inputs' file.
        rounding: The network's own error in float32, relative in the same way, by output.

    Raises:
        ParityError: they differ by more than ``tolerance``, or are not finite where the network's are.
    """
    expected = _named_outputs(build, expected_file(build, network))
    found = _outputs(build, path, stage, parity_inputs_file(build, network))
    names = build.data.task.output_names
    examples = len(expected) - len(edge_inputs) * len(names)
    parity = compare_arrays(
        expected[:examples], found[:examples], stage=stage, tolerance=tolerance, names=names, rounding=rounding
    )
    for index, edge in enumerate(edge_inputs):
        part = slice(examples + index * len(names), examples + (index + 1) * len(names))
        check_edge_outputs(expected[part], found[part], edge, stage=stage, tolerance=tolerance)
    return parity


def check_same_outputs(build: Build, source: Path, path: Path, stage: str, tolerance: float | None) -> Parity:
    """Compare two files of a network on samples that it was trained with, by their outputs.

    Args:
        build: The build.
        source: The exported file.
        path: The file that was made of it; what is computed for the comparison lies next to it.
        stage: The stage that made it.
        tolerance: See ``compare_arrays``.

    Raises:
        ParityError: they differ by more than ``tolerance``.
    """
    inputs = build.data.training_file
    expected = _outputs(build, source, stage, inputs, path.with_suffix(".source.npz"))
    found = _outputs(build, path, stage, inputs)
    return compare_arrays(expected, found, stage=stage, tolerance=tolerance, names=build.data.task.output_names)


def check_imitation(build: Build, network: StoredNetwork, path: Path, max_ratio: float) -> Parity:
    """Compare an int8 file's outputs with those of the module that was trained to compute like it.

    Args:
        build: The build.
        network: Trained for int8.
        path: The file.
        max_ratio: Of what int8 changes, which may stay unexplained; see ``edgeopt.export.parity.unexplained_ratio``.

    Raises:
        ParityError: more of it does.
    """
    assert network.key is not None
    stage = "trained for"
    found = _outputs(build, path, stage, build.data.parity_file)
    imitated = _named_outputs(build, fake_quantized_outputs_file(build, network.key))
    floats = _named_outputs(build, expected_file(build, network))[: len(imitated)]
    parity = compare_arrays(imitated, found, stage=stage, tolerance=None)
    ratio = unexplained_ratio(floats, imitated, found)
    if ratio > max_ratio:
        raise ParityError(
            stage,
            f"{ratio:.0%} of what int8 changes was not seen in training; {max_ratio:.0%} is allowed.",
        )
    return parity


def _named_outputs(build: Build, file: Path) -> list[NDArray[Any]]:
    return [batch[name] for batch in read_batches(file) for name in build.data.task.output_names]


def _outputs(build: Build, path: Path, stage: str, inputs: Path, outputs: Path | None = None) -> list[NDArray[Any]]:
    """Run a file on stored inputs; ``outputs`` is where they are put for a while."""
    outputs = outputs or path.with_suffix(".outputs.npz")
    try:
        run_step(stage, run_model, path, inputs, outputs, host_target(build), stage=stage)
        return _named_outputs(build, outputs)
    finally:
        outputs.unlink(missing_ok=True)


def export_network(build: Build, network: StoredNetwork) -> ExportedFile:
    """Return a network as ONNX: by the dynamo exporter, or by the TorchScript one if dynamo fails or its file is wrong.

    Raises:
        StepError: neither gives a file that computes what the network computes.
    """
    key = _export_key(build, network)
    return build.ledger.remember(
        key,
        ExportedFile,
        lambda: _export(build, network, key.digest),
        is_usable=lambda found: (
            build.workspace.has_artifact(found.sha256) and parity_inputs_file(build, network).exists()
        ),
    )


def is_exported(build: Build, network: StoredNetwork) -> bool:
    """Tell whether a network was exported before, in this build or an earlier one."""
    return build.ledger.get(_export_key(build, network), ExportedFile) is not None


def _export_key(build: Build, network: StoredNetwork) -> Key:
    return build.keys.of("exported-file", network=network.key or network.source)


def _export(build: Build, network: StoredNetwork, name: str) -> ExportedFile:
    notes: list[str] = []
    for exporter in ("dynamo", "torchscript"):
        path = build.workspace.folder("stages") / f"{name}-{exporter}.onnx"
        job = protocol.ExportJob(
            network=reference(build, network),
            exporter=exporter,
            examples=str(build.data.parity_file),
            inputs=str(parity_inputs_file(build, network)),
            expected=str(expected_file(build, network)),
            out=str(path),
            max_opset=build.profile.max_opset,
            max_ir=build.profile.max_ir,
        )
        try:
            done = build.torch_pool.do(job, protocol.ExportDone)
            parity = check_parity(build, network, path, "exported", PARITY_TOLERANCE, done.edge_inputs, done.rounding)
        except (StepError, ParityError) as error:
            remove_model(path)
            notes.append(f"the {exporter} exporter was not used: {error.reason}")
            last = error
            continue
        return ExportedFile(
            sha256=build.workspace.keep_artifact(path),
            exporter="torchscript" if done.exporter == "torchscript" else "dynamo",
            parities=(parity,),
            notes=(*notes, *done.notes),
            edge_inputs=done.edge_inputs,
            rounding=done.rounding,
            parameters=done.parameters,
            merged_sums=done.merged_sums,
        )
    raise (CrashError if isinstance(last, CrashError) else StepError)("export", " ".join(notes), last.trace)
