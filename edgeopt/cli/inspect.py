"""``edgeopt inspect``: the contents of a file and where its time goes, or the channels of a network that can go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from edgeopt.cli.options import refuse_unread_options, run_options, verbose_option

if TYPE_CHECKING:
    from rich.table import Table

    from edgeopt.pipeline.inspect import ModelInspection, TaskInspection

_RUNNING = {
    "target": "--target",
    "device_uri": "--device",
    "batch_size": "--batch-size",
    "shapes": "--shape",
    "allow_fallback": "--allow-fallback",
}
"""Options that say how a file is run, by the names of their arguments."""
SHOWN_ROWS = 10
"""Rows of a table for people; ``--json`` has all of them."""


@click.command("inspect")
@click.argument("subject", metavar="MODEL.onnx|TASK")
@click.option(
    "--target", default="phone", show_default=True, metavar="NAME", help="The target whose runtime settings to use."
)
@run_options
@click.option(
    "--workspace",
    default=".edgeopt",
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Workspace of a build of TASK; its latency table is used if it has one.",
)
@click.option(
    "--channels",
    is_flag=True,
    help="Of MODEL.onnx: the channels that could go, as of a TASK's network (--inputs FILE).",
)
@verbose_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, with every node and tensor.")
def command(
    subject: str,
    target: str,
    device_uri: str | None,
    batch_size: int | None,
    inputs: str | None,
    shapes: tuple[str, ...],
    allow_fallback: tuple[str, ...],
    workspace: Path,
    channels: bool,
    as_json: bool,
) -> None:
    """Show the contents of MODEL.onnx and the time of each node, or the channel groups of TASK's network."""
    from edgeopt.bench.run_target import RunTarget
    from edgeopt.cli.console import ProgressDisplay, stdout_to_stderr
    from edgeopt.config.profiles import load_profile
    from edgeopt.config.shapes import merge_shapes
    from edgeopt.device.open import device_kind, open_device
    from edgeopt.pipeline.inspect import ModelInspection, inspect_channels, inspect_model, inspect_task
    from edgeopt.records.codec import to_json

    _check_options(subject, channels)
    inspection: ModelInspection | TaskInspection
    with stdout_to_stderr(), ProgressDisplay() as progress:

        def report(text: str) -> None:
            progress("inspect", text)

        if channels and subject.endswith(".onnx"):
            inspection = inspect_channels(Path(subject), inputs, workspace, progress=report)
        elif subject.endswith(".onnx"):
            profile = load_profile(target)
            device = open_device(device_uri or profile.device)
            run_target = RunTarget(
                device=device,
                profile=profile,
                kind=device_kind(device.uri, profile),
                allow_fallback=allow_fallback,
                batch_size=batch_size or profile.limits.batch_size,
            )
            inspection = inspect_model(Path(subject), inputs, run_target, report, merge_shapes(shapes, "--shape"))
        else:
            inspection = inspect_task(subject, workspace, progress=report)
    if as_json:
        click.echo(to_json(inspection))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for table in _model_tables(inspection) if isinstance(inspection, ModelInspection) else _task_tables(inspection):
        console.print(table)


def _check_options(subject: str, channels: bool) -> None:
    """Refuse options that say nothing about what is shown.

    Raises:
        click.UsageError: there are some.
    """
    context = click.get_current_context()

    def given(names: dict[str, str]) -> list[str]:
        return [
            option
            for name, option in names.items()
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        ]

    if not subject.endswith(".onnx"):
        advice = f"such options are for a MODEL.onnx, and '{subject}' is a task. Leave them out."
        refuse_unread_options(given({**_RUNNING, "inputs": "--inputs"}), advice)
    elif channels:
        advice = "such options say how the file is run, and --channels doesn't run it. Leave one or the other out."
        refuse_unread_options(given(_RUNNING), advice)
    else:
        advice = "it has the latency table for the channels of MODEL.onnx. Add --channels, or leave it out."
        refuse_unread_options(given({"workspace": "--workspace"}), advice)


def _model_tables(inspection: ModelInspection) -> list[Table]:
    return [_facts_table(inspection), _nodes_table(inspection), _tensors_table(inspection)]


def _facts_table(inspection: ModelInspection) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(inspection.model), show_header=False, title_justify="left")
    for label, value in (
        *(("input", value) for value in inspection.inputs),
        *(("output", value) for value in inspection.outputs),
    ):
        table.add_row(label, escape(f"{value.name}: {value.dtype} {list(value.shape)}"))
    table.add_row("operator set · IR", f"{inspection.opset} · {inspection.ir_version}")
    table.add_row("file", f"{inspection.size_bytes / 1e6:.3f} MB ({inspection.download_bytes / 1e6:.3f} MB deflated)")
    kinds = f", {' and '.join(inspection.weight_types)}" if inspection.weight_types else ""
    table.add_row("parameters", f"{inspection.parameters:,} ({inspection.nonzero_parameters:,} not zero){kinds}")
    table.add_row("MACs per sample", f"{inspection.macs:,}")
    table.add_row("operators", ", ".join(f"{name} {count}" for name, count in inspection.operators.items()))
    if inspection.run_ms is None:
        table.add_row("not run", escape(inspection.not_run or ""))
    else:
        run = f"{inspection.run_ms:.3f} ms at batch size {inspection.batch_size} on {escape(inspection.device)}"
        table.add_row("one run", run)
    for name, use in inspection.providers.items():
        table.add_row(f"run by {name}", f"{use.nodes} nodes after optimization, {use.time_ratio:.1%} of the time")
    for listed in inspection.phone_providers:
        lacks = ", ".join(f"{operator} {count}" for operator, count in listed.unlisted_operators.items())
        parts = f" in {listed.parts} parts" if listed.parts > 1 else ""
        share = f"{listed.listed_nodes} of {listed.nodes} nodes{parts}, judged by operator ({listed.about})"
        table.add_row(f"on a phone, {_short(listed.provider)}", share + (f"; not {lacks}" if lacks else ""))
    for note in inspection.notes:
        table.add_row("note", escape(note))
    return table


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _nodes_table(inspection: ModelInspection) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="slowest nodes, after ONNX Runtime's optimizations", title_justify="left")
    for heading in ("operator", "node", "provider", "time"):
        table.add_column(heading, justify="right" if heading == "time" else "left")
    for node in inspection.nodes[:SHOWN_ROWS]:
        table.add_row(
            node.operator,
            escape(node.name),
            _short(node.provider),
            f"{node.ns / 1e6:.3f} ms · {node.time_ratio:.1%}",
        )
    return table


def _tensors_table(inspection: ModelInspection) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="largest tensors in the file", title_justify="left")
    for heading in ("tensor", "type", "size"):
        table.add_column(heading, justify="right" if heading == "size" else "left")
    for tensor in inspection.tensors[:SHOWN_ROWS]:
        table.add_row(
            escape(tensor.name),
            escape(f"{tensor.dtype} {list(tensor.shape)}"),
            f"{tensor.stored_bytes:,} B · {tensor.size_ratio:.1%}",
        )
    return table


def _task_tables(inspection: TaskInspection) -> list[Table]:
    import statistics

    from rich.markup import escape
    from rich.table import Table

    facts = Table(title=escape(f"channels of {inspection.task}"), show_header=False, title_justify="left")
    facts.add_row("parameters", f"{inspection.parameters:,}")
    facts.add_row("MACs per sample", f"{inspection.macs:,}")
    facts.add_row("channels that can go", f"{inspection.free_channels:,} of {inspection.channels:,}")
    names = ", ".join(branch.name for branch in inspection.branches)
    facts.add_row("branches that can be left out", escape(names) or "none: no skip leads around a part of the network")
    facts.add_row("importance", inspection.importance.method)
    facts.add_row("time", f"of the layers that use a group's channels: {escape(inspection.latency_source)}")
    groups = Table(title="groups: channels that are pruned together", title_justify="left")
    for heading in (
        "group",
        "channels",
        "parameters per channel",
        "importance min · median · max",
        "time",
        "frozen by",
    ):
        groups.add_column(heading, justify="left" if heading in ("group", "frozen by") else "right", overflow="fold")
    for group in inspection.groups:
        scores = group.importance
        spread = (min(scores), statistics.median(scores), max(scores)) if scores else ()
        groups.add_row(
            escape(group.name),
            str(group.channels),
            f"{group.parameters_a_channel:,}",
            " · ".join(f"{value:.2g}" for value in spread) or "–",
            f"{group.latency_ratio:.1%}",
            escape(group.frozen_by or ""),
        )
    return [facts, groups]
