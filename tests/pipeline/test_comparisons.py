"""A comparison that could not be made costs no trial: the file and its measurement are good."""

from types import SimpleNamespace

import msgspec
import pytest
from builders import a_baseline, a_comparison, a_derived_trial, a_recipe, a_trial
from stub_builds import a_stub_build

from edgeopt.errors import DeviceError, DeviceLostError, EdgeoptError, StepError
from edgeopt.pipeline.artifacts.comparisons import parent_of
from edgeopt.pipeline.search.candidate import ScoredArtifact, Variant
from edgeopt.pipeline.search.trial_runner import TrialRunner
from edgeopt.records.recipe import FlushDenormals, Recipe, Sparsify
from edgeopt.records.trial import Measured, Trial

SPARSIFY = Sparsify(method="magnitude", ratio=0.5, scope="global", schedule="once")


class StubEvaluator:
    """Measures every file alike; comparisons with a file of ``failures`` fail."""

    def __init__(self, build, failures: dict[str | None, EdgeoptError]) -> None:
        self.build = build
        self.failures = failures

    def measurement(self, sha256):
        return a_trial().outcome.measurement

    def comparison(self, sha256, against=None):
        if against in self.failures:
            raise self.failures[against]
        return a_comparison()


class ListLedger:
    """Keeps the trials in a list."""

    def __init__(self) -> None:
        self.written: list[Trial] = []
        self.recipes: list[str] = []

    def number_of(self, build: int, recipe: str) -> int:
        self.recipes.append(recipe)
        return 1 + len(self.recipes)

    def add_trial(self, number: int, trial: Trial) -> None:
        self.written.append(trial)


def parent_recipe() -> Recipe:
    return a_recipe(pruned=True)


def a_runner(**failures: EdgeoptError) -> TrialRunner:
    """A runner with a pruned network that a variant is made of; failures by ``baseline`` and ``parent``."""
    parent = a_trial(1, size_bytes=2000, recipe=parent_recipe())
    against = {"baseline": None, "parent": parent.outcome.artifact.sha256}
    build = a_stub_build(
        ledger=ListLedger(), device_info=SimpleNamespace(kind="measured"), facts={"makers": {"edgeopt": "1"}}
    )
    evaluator = StubEvaluator(build, {against[name]: error for name, error in failures.items()})
    runner = TrialRunner(build, original=None, exported=None, evaluator=evaluator, build_number=1, baseline=None)
    runner.trials += [a_baseline(), parent]
    return runner


def a_sparse_variant(runner: TrialRunner) -> Variant:
    """A sparse network of the pruned one, as it was made."""
    variant, made = a_derived_trial(2, SPARSIFY, size_bytes=800), parent_recipe()
    recipe = msgspec.structs.replace(variant.recipe, parent=runner.build.keys.network(made.torch_steps, made.parent))
    return Variant(recipe, ScoredArtifact(variant.outcome.artifact, variant.outcome.score), {})


def test_a_sparse_network_is_compared_with_the_network_it_was_made_of_and_with_the_baseline_only_if_it_may_win():
    runner = a_runner()
    outcome = runner.measure(a_sparse_variant(runner)).outcome
    assert isinstance(outcome, Measured)
    assert outcome.against_baseline is None
    assert runner.needs_comparison(2)
    assert runner.compare(2).outcome.against_baseline is not None
    assert outcome.against_parent.trial == 1
    assert outcome.artifact.notes == ()


@pytest.mark.parametrize("error", [DeviceError("the worker died"), StepError("compare", "the worker died")])
def test_a_failed_comparison_with_the_parent_leaves_a_good_trial_with_a_note(error):
    runner = a_runner(parent=error)
    outcome = runner.measure(a_sparse_variant(runner)).outcome
    assert isinstance(outcome, Measured)
    assert outcome.against_parent is None
    (note,) = outcome.artifact.notes
    assert "trial 1" in note
    assert "the worker died" in note


def test_a_failed_comparison_with_the_baseline_leaves_the_trial_as_it_was():
    runner = a_runner(baseline=DeviceError("the worker died"))
    before = runner.measure(a_sparse_variant(runner))
    with pytest.raises(DeviceError):
        runner.compare(2)
    assert runner.trials.by_number(2) == before
    runner.evaluator.failures.clear()
    assert runner.compare(2).outcome.against_baseline is not None


def test_a_lost_device_ends_the_build_before_the_trial_is_written_so_the_same_command_repeats_it():
    runner = a_runner(parent=DeviceLostError("ssh://pi: the connection broke"))
    with pytest.raises(DeviceLostError):
        runner.measure(a_sparse_variant(runner))
    assert len(runner.trials) == 2
    assert runner.build.ledger.written == []


def test_a_refined_network_is_compared_with_the_same_form_of_its_parent_if_there_is_one():
    runner = a_runner()
    compact = msgspec.structs.replace(a_trial(3, size_bytes=900, recipe=parent_recipe()), number=3)
    steps = (*compact.recipe.graph_steps[:1], FlushDenormals(), *compact.recipe.graph_steps[1:])
    compact = msgspec.structs.replace(compact, recipe=msgspec.structs.replace(compact.recipe, graph_steps=steps))
    plain = runner.trials[1]
    variant = a_sparse_variant(runner)
    for trials, expected in (([compact, plain], 1), ([compact], 3), ([], None)):
        found = parent_of(runner.build, variant.recipe, trials)
        assert (found and found.number) == expected
