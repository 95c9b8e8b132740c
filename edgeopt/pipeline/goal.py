"""What is known of latency when widths are decided."""

from __future__ import annotations

from typing import NamedTuple

from edgeopt.pipeline.artifacts.latency_table import latency_table
from edgeopt.pipeline.artifacts.networks import ExportedFile
from edgeopt.pipeline.context import Build
from edgeopt.records.groups import GroupTable
from edgeopt.records.latency import LatencyTable, NoLatencyTable
from edgeopt.records.profile import Precision
from edgeopt.records.trial import Measured, Trial
from edgeopt.statistics import latency_interval_ms


class LatencyGoal(NamedTuple):
    """The times of layers, and the limit."""

    table: LatencyTable | NoLatencyTable
    max_ratio: float | None
    """Of the original's latency in the table's precision; None where the original keeps the limit."""


def latency_goal(
    build: Build, groups: GroupTable, exported: ExportedFile, precision: Precision, original: Trial | None
) -> LatencyGoal:
    """Return the goal; nothing may train meanwhile.

    Args:
        build: The build.
        groups: Of the original network.
        exported: The original's file.
        precision: The one that would ship.
        original: The trial of the original in that precision.
    """
    build.progress("latency table", f"times of layers in {precision}")
    times = latency_table(build, groups, exported, precision)
    limit = build.budget.max_latency_ms
    if limit is None or original is None or not isinstance(original.outcome, Measured):
        return LatencyGoal(times, None)
    now = latency_interval_ms(original.outcome.measurement, build.budget.latency_percentile).high
    return LatencyGoal(times, limit / now if limit < now else None)
