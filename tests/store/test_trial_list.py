"""Trials keep their numbers over all builds of a task in a workspace."""

import msgspec
import pytest
from builders import a_baseline, a_recipe, a_trial

from edgeopt.records.recipe import Recipe
from edgeopt.store.ledger import Ledger
from edgeopt.store.trial_list import TrialList


@pytest.fixture
def ledger(tmp_path):
    found = Ledger(tmp_path / "ledger.sqlite")
    yield found
    found.close()


def recipes() -> list[Recipe]:
    return [msgspec.structs.replace(a_recipe(), seed=seed) for seed in range(3)]


def try_all(ledger: Ledger, tried: list[Recipe], task: str = "fashion", target: str = "phone") -> list[int]:
    trials = TrialList(ledger, ledger.start_build(task, target, "f"))
    trials.write(a_baseline())
    for recipe in tried:
        trials.write(a_trial(trials.number_for(recipe), recipe=recipe))
    return [trial.number for trial in trials]


def test_the_first_trial_is_number_0(ledger):
    assert TrialList(ledger, ledger.start_build("fashion", "phone", "f")).number_for(recipes()[0]) == 0


def test_a_recipe_has_the_same_number_in_a_later_build_whatever_its_order_and_target(ledger):
    first, second, third = recipes()
    assert try_all(ledger, [first, second]) == [0, 1, 2]
    assert try_all(ledger, [third, second, first], target="car") == [0, 3, 2, 1]


def test_another_task_counts_from_1_again(ledger):
    first, second, _ = recipes()
    try_all(ledger, [first, second])
    assert try_all(ledger, [second], task="digits") == [0, 1]


def test_a_recipe_that_is_tried_twice_in_a_build_has_two_numbers_both_of_which_stay(ledger):
    first, second, _ = recipes()
    assert try_all(ledger, [first, first]) == [0, 1, 2]
    assert try_all(ledger, [second, first, first]) == [0, 3, 1, 2]


def test_numbers_go_on_after_those_of_a_workspace_that_had_none(ledger):
    build = ledger.start_build("fashion", "phone", "f")
    ledger.add_trial(build, a_trial(number=7))
    assert try_all(ledger, recipes()[:1]) == [0, 8]


def test_a_trial_that_is_written_again_keeps_its_place(ledger):
    trials = TrialList(ledger, ledger.start_build("fashion", "phone", "f"))
    for number in (0, 5, 3):
        trials.write(a_trial(number=number))
    trials.write(changed := a_trial(number=5, size_bytes=77))
    assert [trial.number for trial in trials] == [0, 5, 3]
    assert trials.by_number(5) == changed
    assert [trial.number for trial in ledger.trials(trials.build).intact] == [0, 3, 5]
