"""A comparison that could not be made costs no trial: the file and its measurement are good."""

from types import SimpleNamespace

import msgspec
import pytest
from builders import a_baseline, a_budget, a_comparison, a_profile, a_recipe, a_trial, a_variant

from edgeopt.errors import DeviceError, DeviceLostError, EdgeoptError, StepError
from edgeopt.pipeline.forms import Form, Made
from edgeopt.pipeline.search.driver import Search
from edgeopt.records.codec import network_key
from edgeopt.records.recipe import Recipe, Sparsify
from edgeopt.records.trial import Measured, Trial

SPARSIFY = Sparsify(method="magnitude", ratio=0.5, scope="global", schedule="once")


class Scale:
    """Measures everything alike; comparisons with a file of ``failures`` fail."""

    def __init__(self, failures: dict[str | None, EdgeoptError]) -> None:
        self.failures = failures
        self.asked: list[str | None] = []

    def measurement(self, sha256):
        return a_trial().outcome.measurement

    def comparison(self, sha256, against=None):
        self.asked.append(against)
        if against in self.failures:
            raise self.failures[against]
        return a_comparison()


class Ledger:
    """Keeps the trials in a list."""

    def __init__(self) -> None:
        self.written: list[Trial] = []

    def add_trial(self, number: int, trial: Trial) -> None:
        self.written.append(trial)


def parent_recipe() -> Recipe:
    return a_recipe(pruned=True)


def a_search(**failures: EdgeoptError) -> Search:
    """A search with a pruned network that a variant is made of; failures by ``baseline`` and ``parent``."""
    parent = a_trial(1, size_bytes=2000, recipe=parent_recipe())
    places = {"baseline": None, "parent": parent.outcome.artifact.sha256}
    build = SimpleNamespace(
        fingerprint="task", versions="1", budget=a_budget(), profile=a_profile(), progress=lambda stage, detail: None,
        connection=SimpleNamespace(uri="local:"), ledger=Ledger(),
        device=SimpleNamespace(kind="measured"),
    )  # fmt: skip
    scale = Scale({places[name]: error for name, error in failures.items()})
    search = Search(build, original=None, exported=None, scale=scale, number=1)
    search.trials += [a_baseline(), parent]
    return search


def a_form() -> Form:
    """A sparse variant of the pruned network, as it was made."""
    variant = a_variant(2, SPARSIFY, size_bytes=800)
    made = parent_recipe()
    key = network_key("task", made.torch_steps, made.seed, made.parent, "1")
    recipe = msgspec.structs.replace(variant.recipe, parent=key)
    return Form(recipe, Made(variant.outcome.artifact, variant.outcome.score), {})


def test_a_variant_is_compared_with_the_baseline_and_with_what_it_was_made_of():
    outcome = a_search().measure(a_form()).outcome
    assert isinstance(outcome, Measured)
    assert outcome.against_baseline is not None
    assert outcome.against_parent.trial == 1
    assert outcome.artifact.notes == ()


@pytest.mark.parametrize("error", [DeviceError("the worker died"), StepError("compare", "the worker died")])
def test_a_comparison_with_the_parent_that_fails_leaves_a_good_trial_which_says_so(error):
    outcome = a_search(parent=error).measure(a_form()).outcome
    assert isinstance(outcome, Measured)
    assert outcome.against_baseline is not None
    assert outcome.against_parent is None
    (note,) = outcome.artifact.notes
    assert "trial 1" in note
    assert "the worker died" in note


def test_a_comparison_with_the_baseline_that_fails_is_made_again_where_the_trial_would_win():
    search = a_search(baseline=DeviceError("the worker died"))
    outcome = search.measure(a_form()).outcome
    assert isinstance(outcome, Measured)
    assert outcome.against_baseline is None
    assert outcome.against_parent is not None
    assert search.uncompared(2)
    search.scale.failures.clear()
    search.compare(2)
    assert search.trials[2].outcome.against_baseline is not None


@pytest.mark.parametrize("place", ["baseline", "parent"])
def test_a_lost_device_ends_the_build_before_the_trial_is_written_so_that_the_same_command_repeats_it(place):
    search = a_search(**{place: DeviceLostError("ssh://pi: the connection broke")})
    with pytest.raises(DeviceLostError):
        search.measure(a_form())
    assert len(search.trials) == 2
    assert search.build.ledger.written == []
