"""What failed or was cut off in a build, in sentences."""

import msgspec
from builders import a_baseline, a_choice, a_recipe, a_trial

from edgeopt.report import words
from edgeopt.report.document import build_document
from edgeopt.report.failures import failure_notes
from edgeopt.select.teacher_gain import undertrained_note


def a_recipe_cut_off(after, int8=False):
    recipe = a_recipe(pruned=True, int8=int8)
    prune, distill = recipe.torch_steps
    return msgspec.structs.replace(recipe, torch_steps=(prune, msgspec.structs.replace(distill, ended_after=after)))


def notes_of(*trials):
    return failure_notes(build_document(a_choice((a_baseline(), *trials))))


def test_a_training_that_was_cut_off_is_counted_once_whatever_its_files():
    one = [a_trial(1, recipe=a_recipe_cut_off(3)), a_trial(2, recipe=a_recipe_cut_off(3, int8=True))]
    assert notes_of(*one) == [
        "1 training cut off when the time was over, and its network tried as trained so far. The same command with "
        "more time goes on from its last epoch."
    ]
    assert notes_of(*one, a_trial(3, recipe=a_recipe_cut_off(5)))[0].startswith(
        "2 trainings cut off when the time was over, and their networks tried as trained so far."
    )
    assert notes_of(a_trial(1, recipe=a_recipe(pruned=True))) == []


def test_a_recipe_says_after_how_many_epochs_its_training_was_cut_off():
    text = words.recipe_text(a_recipe_cut_off(1), 200, 2000)
    assert "distilled until the time was over, after 1 epoch" in text


def test_the_epochs_that_were_trained_count_for_what_the_teacher_lacks():
    trial = a_trial(1, recipe=a_recipe_cut_off(3), drop=-0.05, drop_ci95=(-0.06, -0.04))
    assert "after 3 epochs with it as the teacher" in undertrained_note([trial])
