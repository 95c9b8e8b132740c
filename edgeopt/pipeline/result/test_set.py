"""The scores of winner and baseline on the test set, which nothing else looks at."""

from __future__ import annotations

import msgspec

from edgeopt.errors import EdgeoptError
from edgeopt.pipeline.artifacts.evaluator import Evaluator
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.records.choice import Choice, TestScores


def score_on_test_set(build: Build, evaluator: Evaluator, choice: Choice) -> Choice:
    """Return the choice with the scores of winner and baseline on the test set, which nothing else looks at.

    If that fails, whoever is to blame, a note says so: the file that won is good without it.
    """
    try:
        return run_step("test", _add_test_scores, build, evaluator, choice)
    except EdgeoptError as error:
        build.progress("test", f"failed: {error}")
        return msgspec.structs.replace(choice, notes=(*choice.notes, f"Not scored on the test set: {error}"))


def _add_test_scores(build: Build, evaluator: Evaluator, choice: Choice) -> Choice:
    with build.clock.stage("test"):
        test = build.data.test_set() if choice.winner is not None else None
        if choice.winner is None or test is None:
            return choice
        build.progress("test", "the winner and the baseline on the test set")
        inputs, targets = test
        winner = evaluator.compare_scores(choice.measured(choice.winner).artifact.sha256, inputs, targets)
        scores = TestScores(
            baseline_score=evaluator.evaluate(evaluator.baseline, inputs, targets).value,
            winner_score=winner.value,
            drop_ci95=winner.drop_ci95,
            samples=winner.judged or winner.samples,
            direction=winner.direction,
        )
        return msgspec.structs.replace(choice, test=scores)
