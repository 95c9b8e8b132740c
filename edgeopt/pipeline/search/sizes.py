"""Which sizes keep the score: what the search learns from trials, and from which network a size starts."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence

from edgeopt.errors import EdgeoptError, StepError
from edgeopt.pipeline.artifacts.networks import StoredNetwork, group_table_of
from edgeopt.pipeline.artifacts.trained_networks import train_network
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import (
    Candidate,
    CandidateTrials,
    Variant,
    importance_of,
    is_student,
    keeps_score,
)
from edgeopt.pipeline.search.trial_runner import TrialRunner
from edgeopt.planning.bisection import Point, parent_ratio
from edgeopt.records.profile import Precision
from edgeopt.records.recipe import Prune
from edgeopt.records.trial import Failed, Measured, Trial
from edgeopt.select.decision import contenders

_FAR_DROPS = 4.0
"""A cut network that is fitted, but that many allowed drops below the original, hardly comes back by a training."""
_LEAST_DROP_RATIO = 0.01
"""Of the limit on the score: the unit of what is far, if less is allowed."""
_LARGEST_FIRST_RATIO = 0.85

_logger = logging.getLogger(__name__)


class KnownSizes:
    """What the trials of a build say about sizes.

    Args:
        build: The build.
        runner: Holds the trials and the networks.
    """

    def __init__(self, build: Build, runner: TrialRunner) -> None:
        self.build = build
        self.runner = runner
        self.refined: set[str | None] = set()
        """Networks that were made of others of their size."""

    def points(self, results: Sequence[CandidateTrials], ratios: Sequence[float]) -> list[Point]:
        """Return what a round says about sizes; a failed candidate counts as bad at the ratio it was meant for.

        A candidate that crashed, or stopped early for a stricter limit, says nothing about its size, nor does a student
        about pruned networks.
        """
        return [
            Point(asked if result.network is None else result.network.ratio, is_good)
            for result, asked in zip(results, ratios, strict=True)
            if (is_good := self.ships(result.trials) or self.would_ship(result.spares))
            or not (self.crashed(result.trials) or self.is_open(result))
        ]

    def would_ship(self, spares: Sequence[Variant]) -> bool:
        """Tell the same as ``ships`` of files that were not measured."""
        shipping = (one for one in spares if one.recipe.precision == self.shipping_precision)
        return any(one.keeps_score(self.build.budget) for one in shipping)

    def is_open(self, result: CandidateTrials) -> bool:
        """Tell whether a candidate is a student, or stopped early for a limit stricter than today's."""
        return is_student(result.trials[0].recipe) or self.runner.may_improve(result.network)

    def crashed(self, trials: Sequence[Trial]) -> bool:
        """Tell whether a candidate has no file in the precision that would ship because of a crash, or of the time."""
        shipping = [trial for trial in trials if trial.recipe.precision == self.shipping_precision]
        kinds = [trial.outcome.kind for trial in trials if isinstance(trial.outcome, Failed)]
        has_crash = "crashed" in kinds or "unfinished" in kinds
        return has_crash and not any(isinstance(trial.outcome, Measured) for trial in shipping)

    def ships(self, trials: Sequence[Trial]) -> bool:
        """Tell whether the variant that would ship keeps the score: that in the original's shipping precision."""
        return any(trial.recipe.precision == self.shipping_precision and self.keeps_score(trial) for trial in trials)

    def keeps_score(self, trial: Trial) -> bool:
        """Tell whether a trial keeps the score limit."""
        return isinstance(trial.outcome, Measured) and keeps_score(trial.outcome.score, self.build.budget)

    @property
    def originals(self) -> list[Trial]:
        """Trials of the original in the target's precisions, including those that were trained for int8."""
        return [trial for trial in self.runner.trials[1:] if trial.recipe.is_original]

    @property
    def shipping_precision(self) -> Precision | None:
        """The precision of the smallest files in which the original keeps the score."""
        kept = {trial.recipe.precision for trial in self.originals if self.keeps_score(trial)}
        return next((name for name in self.runner.precisions if name in kept), None)

    def parent(self, ratio: float, points: Sequence[Point]) -> StoredNetwork:
        """Return the network that a candidate of that ratio starts from: the next larger one that keeps the score."""
        found = self.network(parent_ratio(points, ratio))
        assert found is not None, "points are about networks"
        return found

    def score_channels(self) -> None:
        """Write the original's group table, which plans read; what fails in it fails there again, and is reported."""
        if self.build.may_train:
            with contextlib.suppress(EdgeoptError):
                run_step("analyse", group_table_of, self.build, self.runner.original, importance_of(self.build))

    def within_reach(
        self, plans: list[tuple[Candidate, float]], plan: Callable[[list[float]], list[tuple[Candidate, float]]]
    ) -> list[tuple[Candidate, float]]:
        """Return the first round's candidates: larger ones, if a training would hardly bring the largest back.

        Args:
            plans: Candidates and their shares of the parameters, the largest first.
            plan: Makes candidates of other shares.
        """
        while plans and math.sqrt(plans[0][1]) <= _LARGEST_FIRST_RATIO and self.is_far(*plans[0]):
            larger = plan([math.sqrt(plans[0][1])])
            if not larger or not self.build.may_train:
                break
            plans = [*larger, *plans[:-1]]
        return plans

    def is_far(self, candidate: Candidate, ratio: float) -> bool:
        """Tell whether a cut of the original is far from the limit on the score before it is trained, but fitted."""
        build, floor, original = self.build, self.runner.floor, self.runner.original
        prune = candidate.steps[0]
        if candidate.parent is not None or floor is None or not isinstance(prune, Prune) or not prune.fitted_samples:
            return False
        build.torch_pool.share_cores(1)
        try:
            with build.clock.stage("plan candidates"):
                network = train_network(
                    build, original, (prune,), lambda: group_table_of(build, original, importance_of(build))[1],
                    original.parameters, lambda _: None,
                )  # fmt: skip
        except StepError as error:  # its training fails in the same way, and is reported
            _logger.debug("a network with %.1f %% of the parameters was not fitted: %s", 100 * ratio, error)
            return False
        score = network.torch_score
        if score is None:
            return False
        build.progress("search", f"{ratio:.1%} of the parameters, fitted but not trained: score {score:.4f}")
        lost = (floor.value - score) * (1 if floor.direction == "higher" else -1) + floor.max_drop
        return lost > _FAR_DROPS * max(floor.max_drop, _LEAST_DROP_RATIO * abs(floor.value))

    def network(self, ratio: float) -> StoredNetwork | None:
        """Return the network of a size; of two, the one whose training did not end early."""
        found = [network for network in self.runner.networks.values() if network.ratio == ratio]
        return min(found, key=lambda one: (one.key in self.refined, one.stopped_for is not None), default=None)

    @property
    def winner(self) -> int | None:
        """The trial that would win if the search ended now."""
        on_target = self.build.device_info.kind == "measured"
        found = contenders(tuple(self.runner.trials), self.build.budget, proven_on_target=on_target)
        return found[0] if found else None

    @property
    def winning_ratio(self) -> float:
        """The share of the parameters that the winner's network has; 1 without a winner."""
        if self.winner is None:
            return 1.0
        recipe = self.runner.trials.by_number(self.winner).recipe
        network = self.runner.network_of(Candidate(steps=recipe.torch_steps, parent=recipe.parent))
        network = network or self.runner.networks.get(recipe.parent)  # of one that was trained for int8
        return 1.0 if network is None or not recipe.torch_steps else network.ratio
