"""``edgeopt inspect``: what a file holds and where its time goes, or which channels of a network can go."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.options import run_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.table import Table

    from edgeopt.bench.nodes import FileTime
    from edgeopt.records.groups import GroupTable
    from edgeopt.records.latency import LatencyTable

PROFILE = "a quick look in PyTorch, on one thread of this machine"
TABLE = "ONNX Runtime's latency table"
SHOWN = 10
"""Rows of a table for people; ``--json`` has all."""


@click.command("inspect")
@click.argument("subject", metavar="MODEL.onnx|TASK")
@click.option("--target", default="phone", show_default=True, metavar="NAME", help="Whose runtime settings to use.")
@run_options
@click.option(
    "--workspace",
    default=".edgeopt",
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where a build of TASK may have left a latency table.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, with every node and tensor.")
def command(
    subject: str,
    target: str,
    device: str | None,
    batch_size: int | None,
    inputs: Path | None,
    allow_fallback: tuple[str, ...],
    workspace: Path,
    as_json: bool,
) -> None:
    """Show what MODEL.onnx holds, who runs each node and how long; or the pruning groups of TASK's network."""
    from edgeopt.cli.console import ProgressDisplay
    from edgeopt.records.codec import to_json

    with ProgressDisplay() as progress:

        def tell(text: str) -> None:
            progress("inspect", text)

        if subject.endswith(".onnx"):
            found = inspect_model(Path(subject), target, device, batch_size, inputs, allow_fallback, tell)
        else:
            found = inspect_task(subject, workspace, tell)
    if as_json:
        click.echo(to_json(found))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for table in _model_tables(found) if subject.endswith(".onnx") else _task_tables(found):
        console.print(table)


def inspect_model(
    model: Path,
    target: str,
    device: str | None,
    batch_size: int | None,
    inputs: Path | None,
    allow_fallback: tuple[str, ...],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Return facts, tensors and timed nodes of a file, under schema ``edgeopt/inspect-model-1``.

    Raises:
        InputError: there is no such file, or its inputs cannot be made up.
        ProviderError, StepError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    from edgeopt.bench.nodes import LONG_PROFILING_TURNS, profile_nodes
    from edgeopt.config.profiles import load_profile
    from edgeopt.device.open import open_device
    from edgeopt.errors import InputError
    from edgeopt.graph.facts import facts
    from edgeopt.graph.initializers import stored_tensors

    if not model.is_file():
        raise InputError(f"there is no file {model}. A task is a ready task's name, `module:name` or `file.py:name`.")
    tell("reading the file")
    known, tensors = facts(model), stored_tensors(model)
    profile = load_profile(target)
    where, batch = open_device(device or profile.device), batch_size or profile.limits.batch_size
    tell("profiling nodes")
    (timed,) = profile_nodes([model], where, profile, batch, allow_fallback, inputs, LONG_PROFILING_TURNS)
    return {
        "schema": "edgeopt/inspect-model-1",
        "model": str(model),
        "target": profile.name,
        "device": where.uri,
        "batch_size": batch,
        **{name: getattr(known, name) for name in ("size_bytes", "download_bytes", "parameters", "nonzero_parameters")},
        **{name: getattr(known, name) for name in ("macs", "opset", "ir_version", "operators")},
        "inputs": [value._asdict() for value in known.inputs],
        "outputs": [value._asdict() for value in known.outputs],
        "tensors": [{**tensor._asdict(), "size_ratio": tensor.stored_bytes / known.size_bytes} for tensor in tensors],
        **_shares(timed),
    }


def _shares(timed: FileTime) -> dict[str, Any]:
    """Return nodes, providers and operators with their shares of the time; the slowest first."""
    from edgeopt.bench.nodes import time_by_provider

    total, shares = sum(node.ns for node in timed.nodes) or 1.0, time_by_provider(timed.nodes)
    by_operator: Counter[str] = Counter()
    for node in timed.nodes:
        by_operator[node.operator] += node.ns  # type: ignore[assignment]
    nodes = sorted(timed.nodes, key=lambda node: -node.ns)
    counts = Counter(node.provider for node in timed.nodes)
    return {
        "run_ms": timed.ns / 1e6,
        "providers": {name: {"nodes": counts[name], "time_ratio": ratio} for name, ratio in shares.items()},
        "time_by_operator": {name: ns / total for name, ns in by_operator.most_common()},
        "nodes": [
            {
                "name": node.name,
                "operator": node.operator,
                "provider": node.provider,
                "ns": node.ns,
                "time_ratio": node.ns / total,
            }
            for node in nodes
        ],
    }


def _model_tables(found: dict[str, Any]) -> list[Table]:
    from rich.markup import escape
    from rich.table import Table

    facts = Table(title=escape(found["model"]), show_header=False, title_justify="left")
    values = [*(("input", value) for value in found["inputs"]), *(("output", value) for value in found["outputs"])]
    for label, value in values:
        facts.add_row(label, escape(f"{value['name']}: {value['dtype']} {list(value['shape'])}"))
    facts.add_row("operator set · IR", f"{found['opset']} · {found['ir_version']}")
    facts.add_row("file", f"{found['size_bytes'] / 1e6:.3f} MB ({found['download_bytes'] / 1e6:.3f} MB deflated)")
    facts.add_row("parameters", f"{found['parameters']:,} ({found['nonzero_parameters']:,} not zero)")
    facts.add_row("MACs of one sample", f"{found['macs']:,}")
    facts.add_row("operators", ", ".join(f"{name} {count}" for name, count in found["operators"].items()))
    facts.add_row("one run", f"{found['run_ms']:.3f} ms at batch {found['batch_size']} on {escape(found['device'])}")
    for name, part in found["providers"].items():
        facts.add_row(
            f"run by {name}", f"{part['nodes']} nodes after optimization, {part['time_ratio']:.1%} of the time"
        )
    slow = Table(title="slowest nodes, after ONNX Runtime's optimizations", title_justify="left")
    large = Table(title="largest tensors of the file", title_justify="left")
    for table, headings in ((slow, ("operator", "node", "provider", "time")), (large, ("tensor", "type", "file"))):
        for heading in headings:
            table.add_column(heading, justify="right" if heading in ("time", "file") else "left")
    for node in found["nodes"][:SHOWN]:
        slow.add_row(
            node["operator"],
            escape(node["name"]),
            node["provider"].removesuffix("ExecutionProvider"),
            f"{node['ns'] / 1e6:.3f} ms · {node['time_ratio']:.1%}",
        )
    for tensor in found["tensors"][:SHOWN]:
        shape = f"{tensor['dtype']} {list(tensor['shape'])}"
        large.add_row(
            escape(tensor["name"]), escape(shape), f"{tensor['stored_bytes']:,} B · {tensor['size_ratio']:.1%}"
        )
    return [facts, slow, large]


def inspect_task(spec: str, workspace: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return the pruning groups of a task's network, under schema ``edgeopt/inspect-task-1``.

    Torch runs in a process of its own.

    Raises:
        TaskError: the task cannot be loaded or is at fault.
        StepError: the network cannot be traced or analysed.
    """
    from edgeopt.pipeline.torch_process import protocol
    from edgeopt.pipeline.torch_process.pool import TorchPool
    from edgeopt.records.codec import from_json
    from edgeopt.records.groups import GroupTable
    from edgeopt.records.recipe import Importance

    tell("loading the task and following its channels")
    importance = Importance()
    original = protocol.NetworkRef(source="original", file=None)
    trainers = TorchPool(spec, 1)
    try:
        with tempfile.TemporaryDirectory(prefix="edgeopt-inspect-") as folder:
            out = Path(folder) / "groups.json"
            trainers.do(protocol.TableJob(network=original, importance=importance, out=str(out)), protocol.TableDone)
            table = from_json(out.read_bytes(), GroupTable)
        known = latency_of(workspace, table)
        if known is None:
            tell("timing operators")
            profile = trainers.do(protocol.ProfileJob(network=original), protocol.ProfileDone)
            shares, source = shares_of_profile(table, profile.ns, profile.total_ns), PROFILE
        else:
            shares, source = shares_of_table(known), f"{TABLE} in {known.precision}, from {workspace}"
    finally:
        trainers.close()
    widths = table.widths()
    return {
        "schema": "edgeopt/inspect-task-1",
        "task": spec,
        "importance": importance,
        "latency_source": source,
        "parameters": table.parameters(widths),
        "macs": table.macs(widths),
        "free_channels": sum(group.channels for group in table.free),
        "channels": sum(group.channels for group in table.groups),
        "groups": [
            {
                "name": group.name,
                "channels": group.channels,
                "frozen_by": group.frozen_by,
                "importance": group.importance,
                "latency_ratio": shares.get(group.name, 0.0),
                "parameters_a_channel": table.parameters(widths) - table.parameters({group.name: group.channels - 1}),
            }
            for group in table.groups
        ],
    }


def latency_of(workspace: Path, table: GroupTable) -> LatencyTable | None:
    """Return the newest latency table of this network that a build left in the workspace, or None."""
    from edgeopt.records.latency import LatencyTable
    from edgeopt.store.ledger import Ledger

    file = workspace / "ledger.sqlite"
    if not file.is_file():
        return None
    ledger = Ledger(file)
    try:
        tables = ledger.newest_first("latency", LatencyTable)
        return next((one for one in tables if one.wholes and one.wholes[0].widths == table.widths()), None)
    finally:
        ledger.close()


def shares_of_table(table: LatencyTable) -> dict[str, float]:
    """Return for each group the share of the original's time in layers whose sizes follow its channels."""
    whole = sum(layer.times[0].ns for layer in table.layers) or 1.0
    return _shares_by_group(
        ({name for one in layer.dimensions for name in one.per_channel}, layer.times[0].ns / whole)
        for layer in table.layers
    )


def shares_of_profile(table: GroupTable, ns: dict[str, float], total_ns: float) -> dict[str, float]:
    """Return for each group the share of the time in operators whose weights follow its channels."""
    return _shares_by_group(
        ({name for one in tensor.dims for name in one.per_channel}, ns.get(tensor.name, 0.0) / (total_ns or 1.0))
        for tensor in table.tensors
    )


def _shares_by_group(layers: Iterable[tuple[set[str], float]]) -> dict[str, float]:
    """Add up; a layer between two groups counts for both, so the shares add up to more than one."""
    found: Counter[str] = Counter()
    for names, share in layers:
        for name in names:
            found[name] += share  # type: ignore[assignment]
    return dict(found)


def _task_tables(found: dict[str, Any]) -> list[Table]:
    import statistics

    from rich.markup import escape
    from rich.table import Table

    facts = Table(title=escape(f"channels of {found['task']}"), show_header=False, title_justify="left")
    facts.add_row("parameters", f"{found['parameters']:,}")
    facts.add_row("MACs of one sample", f"{found['macs']:,}")
    facts.add_row("channels that can go", f"{found['free_channels']:,} of {found['channels']:,}")
    facts.add_row("importance", found["importance"].method)
    facts.add_row("time", f"of the layers that a group's channels pass: {escape(found['latency_source'])}")
    groups = Table(title="groups: channels that go together", title_justify="left")
    headings = ("group", "channels", "parameters a channel", "importance min · median · max", "time", "frozen by")
    for heading in headings:
        groups.add_column(heading, justify="left" if heading in ("group", "frozen by") else "right", overflow="fold")
    for group in found["groups"]:
        scores = group["importance"]
        spread = (
            " · ".join(f"{value:.2g}" for value in (min(scores), statistics.median(scores), max(scores)))
            if scores
            else "–"
        )
        groups.add_row(
            escape(group["name"]),
            str(group["channels"]),
            f"{group['parameters_a_channel']:,}",
            spread,
            f"{group['latency_ratio']:.1%}",
            escape(group["frozen_by"] or ""),
        )
    return [facts, groups]
