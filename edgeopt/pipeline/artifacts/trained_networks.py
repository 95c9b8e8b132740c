"""Trained networks of a build: what torch steps make of a network, made by a torch process and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeopt.errors import CrashError
from edgeopt.pipeline.artifacts.networks import StoredNetwork, fake_quantized_outputs_file, reference
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.recipe import Distill, Prune, TorchStep
from edgeopt.records.scoring import ScoreFloor
from edgeopt.report import words


def train_network(
    build: Build,
    parent: StoredNetwork,
    steps: tuple[TorchStep, ...],
    table_file: Callable[[], Path] | None,
    original_parameters: int,
    progress: Callable[[protocol.EpochProgress], None],
    fake_quant_files: Callable[[], tuple[Path, Path]] | None = None,
    floor: ScoreFloor | None = None,
) -> StoredNetwork:
    """Return the network that ``steps`` make of ``parent``: from the ledger, or trained now (or further).

    One whose training is cut off has a key of its own, that of ``cut_off`` steps: the whole training is still to come.

    Args:
        build: The build.
        parent: The network to start from.
        steps: The torch steps, in order.
        table_file: Gives the parent's group table, for ``Prune``.
        original_parameters: Of the trained model.
        progress: Called with each epoch.
        fake_quant_files: Gives the files of the sites that the parent's int8 file rounds and of the values there, for
            ``QuantizeAware``.
        floor: The score that it must reach; a training that cannot ends early.
    """
    key = build.keys.of("network", torch_steps=steps, parent=parent.key)
    found = build.ledger.get(key, StoredNetwork)
    if found is not None and build.workspace.network(key.digest).exists():
        return found
    fitted = _cut_and_fitted(build, parent, steps)
    sites, values = (None, None) if fake_quant_files is None else fake_quant_files()
    int8 = None if sites is None else protocol.Int8Reference(
        sites=str(sites), values=str(values), inputs=str(build.data.parity_file),
        expected=str(fake_quantized_outputs_file(build, key.digest)),
    )  # fmt: skip
    table = None if table_file is None else str(table_file())
    job = _training_job(build, key.digest, parent, steps, table, int8, floor, fitted)
    done = train_with_retry(build, job, progress)
    if done.ended_after is not None:
        key = build.keys.of("network", torch_steps=cut_off(steps, done.ended_after), parent=parent.key)
        _move_network(build, job, key.digest)
    proof_error = done.proof_error if fitted is None else fitted.proof_error
    network = StoredNetwork(
        key=key.digest, source=done.source, parameters=done.parameters, ratio=done.parameters / original_parameters,
        torch_score=done.best_score, proof_error=proof_error, notes=done.notes, seconds=done.seconds,
        fake_quant_sites=None if sites is None else sites.name, stopped_for=floor if done.stopped else None,
        ended_after=done.ended_after, input_size=done.input_size,
    )  # fmt: skip
    build.ledger.put(key, network)
    return network


def _cut_and_fitted(build: Build, parent: StoredNetwork, steps: tuple[TorchStep, ...]) -> StoredNetwork | None:
    """Return what the first of several steps makes of ``parent``, if it is a cut that was fitted before; else None."""
    if len(steps) < 2 or not isinstance(steps[0], Prune) or not steps[0].fitted_samples:
        return None
    key = build.keys.of("network", torch_steps=steps[:1], parent=parent.key)
    found = build.ledger.get(key, StoredNetwork)
    return found if found is not None and build.workspace.network(key.digest).exists() else None


def _training_job(
    build: Build,
    key: str,
    parent: StoredNetwork,
    steps: tuple[TorchStep, ...],
    table: str | None,
    int8: protocol.Int8Reference | None,
    floor: ScoreFloor | None,
    fitted: StoredNetwork | None,
) -> protocol.TrainJob:
    return protocol.TrainJob(
        parent=reference(build, parent), table=table, steps=steps, int8=int8, floor=floor,
        fitted=None if fitted is None else reference(build, fitted),
        seed=build.seed, deadline=build.deadline, stop_file=str(build.workspace.stop_file),
        checkpoint=str(build.workspace.folder("checkpoints") / f"{key}.safetensors"),
        teacher=str(build.workspace.folder("teacher") / build.fingerprint), out=str(build.workspace.network(key)),
        threads=build.torch_pool.threads, precision=build.torch_pool.precision,
    )  # fmt: skip


def cut_off(steps: tuple[TorchStep, ...], epochs: int) -> tuple[TorchStep, ...]:
    """Return steps whose last training ends after some of its epochs, because the time of a build was over."""
    *before, last = steps
    assert isinstance(last, Distill), "nothing else takes so long"
    return (*before, msgspec.structs.replace(last, ended_after=epochs))


def _move_network(build: Build, job: protocol.TrainJob, key: str) -> None:
    """Move what a training has written to the files of another key."""
    Path(job.out).replace(build.workspace.network(key))
    if job.int8 is not None:
        Path(job.int8.expected).replace(fake_quantized_outputs_file(build, key))


def train_with_retry(
    build: Build, job: protocol.TrainJob, progress: Callable[[protocol.EpochProgress], None]
) -> protocol.TrainDone:
    """Run a training; if a library crashes in it, once more in row-major memory and with half of each batch at a time.

    It goes on from the checkpoint of its last epoch.

    Raises:
        CrashError: it crashed twice; the reason tells of both. Or a cluster lost it, for all its attempts.
    """
    try:
        done = build.torch_pool.do(job, protocol.TrainDone, progress)
    except CrashError as error:
        if error.stage == protocol.CLUSTER_STAGE:
            raise
        first = error.reason
        build.progress("train", f"trying again in row-major memory and half batches: {first}")
        careful = msgspec.structs.replace(job, careful=True)
        try:
            done = build.torch_pool.do(careful, protocol.TrainDone, progress)
        except CrashError as again:
            same = again.reason == first
            both = f"{first} It did so again" if same else f"{first} Then, {again.reason}, when it was tried again"
            both += " in row-major memory and half batches."
            raise CrashError(again.stage, both, again.trace) from again
        note = f"trained in row-major memory and half batches, after a crash: {first}"
        done = msgspec.structs.replace(done, notes=(*done.notes, note))
    if done.stopped and job.floor is not None:
        build.progress("train", f"stopped at score {done.best_score:.4f}: it cannot reach {job.floor.value:.4f}")
    if done.ended_after is not None:
        epochs = words.plural(done.ended_after, "epoch")
        build.progress("train", f"cut off after {epochs} at score {done.best_score:.4f}, and tried as it is")
    return done
