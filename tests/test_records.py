"""Records: through JSON and back, unknown fields refused, and keys that stay the same."""

import msgspec
import pytest
from builders import a_budget, a_choice, a_failed_trial, a_profile, a_recipe, a_trial

from edgeopt.config.profiles import load_profile
from edgeopt.records.budget import Budget
from edgeopt.records.choice import Choice
from edgeopt.records.codec import artifact_key, digest, from_json, measurement_key, network_key, to_json
from edgeopt.records.measurement import DeviceInfo
from edgeopt.records.profile import Profile
from edgeopt.records.recipe import Importance, Prune, Recipe, Simplify, Student

PHONE = load_profile("phone")
HERE = DeviceInfo(uri="local:", kind="stand-in", id="x86-1")
A_RECIPE = Recipe(
    torch_steps=(Student(name="small"), Prune(importance=Importance(method="l2"), widths={"b": 8, "a": 16})),
    graph_steps=(Simplify(),),
    seed=0,
    parent=None,
)


def replaced(record, **changes):
    return msgspec.structs.replace(record, **changes)


@pytest.mark.parametrize(
    "record",
    [a_budget(), a_profile(), PHONE, A_RECIPE, a_recipe(pruned=True, int8=True), a_trial(), a_failed_trial()],
    ids=lambda record: type(record).__name__,
)
def test_a_record_comes_back_from_json_as_it_was(record):
    assert from_json(to_json(record), type(record)) == record


def test_a_choice_comes_back_from_json_as_it_was():
    choice = a_choice()
    assert from_json(to_json(choice), Choice) == choice


def test_which_step_it_is_stands_in_the_json():
    steps = msgspec.json.decode(to_json(A_RECIPE))["torch_steps"]
    assert [step["step"] for step in steps] == ["student", "prune"]
    outcome = msgspec.json.decode(to_json(a_failed_trial()))["outcome"]
    assert outcome["status"] == "failed"


def test_an_unknown_field_is_refused_with_its_name():
    data = to_json(a_budget())[:-1] + b',"max_heat":1}'
    with pytest.raises(msgspec.ValidationError, match="max_heat"):
        from_json(data, Budget)


def test_a_missing_field_and_a_wrong_type_are_refused_with_their_path():
    value = msgspec.json.decode(to_json(PHONE))
    del value["limits"]["batch_size"]
    with pytest.raises(msgspec.ValidationError, match=r"`batch_size`.*\$\.limits"):
        from_json(to_json(value), Profile)
    value["limits"]["batch_size"] = "one"
    with pytest.raises(msgspec.ValidationError, match=r"\$\.limits\.batch_size"):
        from_json(to_json(value), Profile)


def test_a_graph_step_cannot_stand_among_torch_steps():
    value = msgspec.json.decode(to_json(A_RECIPE))
    value["torch_steps"], value["graph_steps"] = value["graph_steps"], value["torch_steps"]
    with pytest.raises(msgspec.ValidationError, match=r"student.*graph_steps"):
        from_json(to_json(value), Recipe)


def test_a_record_is_frozen():
    with pytest.raises(AttributeError):
        PHONE.threads = 4


def test_the_order_in_which_a_dictionary_was_filled_does_not_change_its_name():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_names_are_the_same_in_every_version_of_edgeopt():
    # Written down once: where these change, every workspace in the world forgets its trials.
    assert digest(("a", 1, 0.5, None)) == "17b71729aa9e49e8c4cf"
    assert network_key("task", A_RECIPE.torch_steps, 0, None, "v1") == "408b7d06de7429f30030"
    assert artifact_key("task", A_RECIPE, "v1") == "294ce2df55c8df404bb9"


def test_an_artifact_is_named_by_recipe_task_and_versions():
    names = {
        artifact_key("task", A_RECIPE, "v1"),
        artifact_key("other task", A_RECIPE, "v1"),
        artifact_key("task", replaced(A_RECIPE, seed=1), "v1"),
        artifact_key("task", replaced(A_RECIPE, parent="x"), "v1"),
        artifact_key("task", replaced(A_RECIPE, graph_steps=()), "v1"),
        artifact_key("task", A_RECIPE, "v2"),
        network_key("task", A_RECIPE.torch_steps, 0, None, "v1"),
    }
    assert len(names) == 7


def test_a_new_limit_measures_nothing_again():
    other = replaced(PHONE, limits=replaced(PHONE.limits, max_latency_ms=1.0), title="other words", channel_step=16)
    assert measurement_key("ab", HERE, "1.32.0", PHONE, 1) == measurement_key("ab", HERE, "1.32.0", other, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 2},
        {"providers": ("CUDAExecutionProvider",)},
        {"allow_spinning": True},
        {"memory_arena": False},
        {"affinity": (0,)},
        {"graph_level": "basic"},
        {"timing": replaced(PHONE.timing, processes=9)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_runtime_setting_measures_again(changes):
    other = replaced(PHONE, **changes)
    assert measurement_key("ab", HERE, "1.32.0", PHONE, 1) != measurement_key("ab", HERE, "1.32.0", other, 1)


def test_another_file_device_runtime_or_batch_measures_again():
    first = measurement_key("ab", HERE, "1.32.0", PHONE, 1)
    assert measurement_key("cd", HERE, "1.32.0", PHONE, 1) != first
    assert measurement_key("ab", replaced(HERE, id="x86-2"), "1.32.0", PHONE, 1) != first
    assert measurement_key("ab", HERE, "1.33.0", PHONE, 1) != first
    assert measurement_key("ab", HERE, "1.32.0", PHONE, 8) != first
