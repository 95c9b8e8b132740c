"""What comes of a candidate before it is measured: one file in each form, and after: its trials."""

from __future__ import annotations

from typing import NamedTuple

from edgeopt.pipeline.artifacts.networks import StoredNetwork
from edgeopt.records.budget import Budget
from edgeopt.records.quantization import NodeNoise
from edgeopt.records.recipe import Recipe
from edgeopt.records.trial import Artifact, Failed, Score, Trial
from edgeopt.select.limits import score_findings


class Made(NamedTuple):
    """A candidate's file in one precision, not measured yet."""

    artifact: Artifact
    score: Score


class Form(NamedTuple):
    """A candidate in one precision, or what became of it."""

    recipe: Recipe
    made: Made | Failed
    seconds: dict[str, float]
    ranking: tuple[NodeNoise, ...] = ()
    """What a mixed form's float nodes were taken from."""


class Harvest(NamedTuple):
    """All that came of one candidate."""

    network: StoredNetwork | None
    forms: list[Form]


class Result(NamedTuple):
    """A candidate's network and trials; no network where it failed before there was one."""

    network: StoredNetwork | None
    trials: list[Trial]


def score_keeps(score: Score, budget: Budget) -> bool:
    """Tell whether a score keeps the budget's floor."""
    return all(finding.kept for finding in score_findings(score, budget))
