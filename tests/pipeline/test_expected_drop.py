"""The drop that is expected on other data: more than on the samples that chose, and said in the report."""

from types import SimpleNamespace

import numpy as np
import pytest
from builders import a_baseline, a_budget, a_choice, a_trial
from stub_builds import a_stub_build

from edgeopt.errors import StepError
from edgeopt.pipeline.artifacts.evaluator import FileScore
from edgeopt.pipeline.result.expected_drop import with_expected_drop
from edgeopt.pipeline.search.candidate import ScoredArtifact, Variant
from edgeopt.report.document import build_document
from edgeopt.report.score_sentences import expected_drop
from edgeopt.statistics import paired_drop_interval
from edgeopt.tasks.given.onnx_file import OnnxTask

SAMPLES = 2000
BUDGET = a_budget(max_score_drop=0.01)


class Scores:
    """An evaluator with stored scores of samples, by the size of the file; of the baseline all are right."""

    def __init__(self, losing, **data):
        random = np.random.default_rng(0)
        noise = 0.01
        self.by_size = {}
        for size, ratio in losing.items():
            wrong = random.random(SAMPLES) < ratio + noise
            self.by_size[size] = np.where(wrong, 0.0, 1.0)
        self.base = np.where(random.random(SAMPLES) < noise, 0.0, 1.0)
        defaults = {"scores_rows": False, "score_direction": "higher", "eval_file": None, "targets": [], "task": None}
        self.build = a_stub_build(budget=BUDGET, seed=0, data=SimpleNamespace(**defaults | data))
        self.sha_to_size = {}

    def trial(self, number, size):
        samples = self.by_size[size]
        found = paired_drop_interval(self.base, samples)
        trial = a_trial(
            number, size_bytes=size, score=float(samples.mean()), drop=found.value, drop_ci95=(found.low, found.high)
        )
        self.sha_to_size[trial.outcome.artifact.sha256] = size
        return trial

    def evaluate(self, sha256, inputs, targets):
        samples = self.by_size.get(self.sha_to_size.get(sha256), self.base)
        return FileScore(value=float(samples.mean()), total=SAMPLES, samples=samples)


def test_the_smallest_of_many_files_at_the_edge_is_expected_to_lose_more_elsewhere():
    scores = Scores({900 - index: 0.003 + 0.0002 * index for index in range(12)})
    trials = (a_baseline(), *(scores.trial(1 + index, size) for index, size in enumerate(scores.by_size)))
    choice = a_choice(trials, BUDGET)
    assert choice.winner
    found = with_expected_drop(scores.build, scores, choice)
    winner = choice.trial(choice.winner).outcome.score
    assert found.expected.files == 12  # the baseline of these tests has no interval
    assert winner.drop < found.expected.drop < winner.drop + 0.005
    assert found.expected.drop_ci95[1] - winner.drop_ci95[1] == pytest.approx(found.expected.drop - winner.drop)
    assert "chosen among 12 files" in expected_drop(build_document(found))


def test_files_that_were_scored_but_not_measured_count_alike():
    scores = Scores({900 - index: 0.003 + 0.0002 * index for index in range(12)})
    trials = [scores.trial(1 + index, size) for index, size in enumerate(scores.by_size)]
    whole = with_expected_drop(scores.build, scores, a_choice((a_baseline(), *trials), BUDGET))
    spares = [
        Variant(one.recipe, ScoredArtifact(one.outcome.artifact, one.outcome.score), {})
        for one in trials
        if one.number % 2 and one.number != whole.winner
    ]
    others = [one for one in trials if not one.number % 2 or one.number == whole.winner]
    found = with_expected_drop(scores.build, scores, a_choice((a_baseline(), *others), BUDGET), spares)
    assert len(spares) >= 5
    assert (found.winner, found.expected) == (whole.winner, whole.expected)


def test_samples_that_int8_was_fitted_to_say_nothing_of_others():
    scores = Scores({900 - index: 0.003 + 0.0002 * index for index in range(3)})
    trials = (a_baseline(), *(scores.trial(1 + index, size) for index, size in enumerate(scores.by_size)))
    for is_shared in (True, False):
        task = object.__new__(OnnxTask)
        task.split = SimpleNamespace(is_shared=is_shared)
        scores.build.data.task = task
        found = with_expected_drop(scores.build, scores, a_choice(trials, BUDGET)).expected
        assert (found is None) == is_shared


def test_without_a_limit_on_the_drop_or_a_winner_besides_the_baseline_nothing_is_expected():
    scores = Scores({900: 0.5})
    choice = a_choice((a_baseline(), scores.trial(1, 900)), BUDGET)
    assert choice.winner == 0
    assert with_expected_drop(scores.build, scores, choice).expected is None
    assert expected_drop(build_document(choice)) is None


def test_samples_that_do_not_count_are_not_drawn():
    scores = Scores({900 - index: 0.003 for index in range(3)})
    trials = (a_baseline(), *(scores.trial(1 + index, size) for index, size in enumerate(scores.by_size)))
    evaluate = scores.evaluate
    scores.evaluate = lambda *given: evaluate(*given)._replace(total=SAMPLES + 50)  # as with ignored labels
    assert with_expected_drop(scores.build, scores, a_choice(trials, BUDGET)).expected is not None


def test_scores_that_are_gone_cost_only_the_expectation():
    scores = Scores({900: 0.0})
    choice = a_choice((a_baseline(), scores.trial(1, 900)), BUDGET)

    def fail(*_):
        raise StepError("evaluate", "the worker died")

    scores.evaluate = fail
    assert with_expected_drop(scores.build, scores, choice) == choice
