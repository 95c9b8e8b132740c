"""Records: to JSON and back, unknown fields, keys that stay the same, and facts of a recipe."""

import msgspec
import pytest
from builders import a_budget, a_choice, a_failed_trial, a_profile, a_recipe, a_trial

from edgeopt.config.profiles import load_profile
from edgeopt.records.budget import Budget
from edgeopt.records.choice import Choice
from edgeopt.records.codec import digest, from_json, to_json
from edgeopt.records.measurement import DeviceInfo
from edgeopt.records.profile import Profile
from edgeopt.records.recipe import (
    Float16,
    Importance,
    Prune,
    QuantizeAware,
    QuantizeDynamic,
    QuantizeWeights,
    Recipe,
    Simplify,
    Student,
)

PHONE = load_profile("phone")
HERE = DeviceInfo(uri="local:", kind="stand-in", id="x86-1")
A_RECIPE = Recipe(
    torch_steps=(Student(name="small"), Prune(importance=Importance(method="l2"), widths={"b": 8, "a": 16})),
    graph_steps=(Simplify(),),
    seed=0,
    parent=None,
)


AWARE = QuantizeAware(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=256)


def replaced(record, **changes):
    return msgspec.structs.replace(record, **changes)


@pytest.mark.parametrize(
    ("steps", "precision"),
    [
        ((), "fp32"),
        ((Simplify(),), "fp32"),
        ((Simplify(), Float16()), "fp16"),
        (a_recipe(int8=True).graph_steps, "int8"),
        ((QuantizeDynamic(reduce_range=True),), "int8"),
        ((QuantizeWeights(bits=4, block=32),), "int8"),
    ],
)
def test_a_recipes_precision_is_that_of_its_graph_steps(steps, precision):
    assert replaced(A_RECIPE, graph_steps=steps).precision == precision


@pytest.mark.parametrize(
    ("changes", "original"),
    [
        ({"torch_steps": ()}, True),
        ({"torch_steps": (AWARE,)}, True),
        ({"torch_steps": (AWARE,), "parent": "x"}, False),
        ({"torch_steps": (), "parent": "x"}, False),
        ({}, False),
    ],
)
def test_a_recipe_is_the_original_if_nothing_changed_its_structure_or_its_starting_weights(changes, original):
    assert replaced(A_RECIPE, **changes).is_original == original


@pytest.mark.parametrize(
    "record",
    [a_budget(), a_profile(), PHONE, A_RECIPE, a_recipe(pruned=True, int8=True), a_trial(), a_failed_trial()],
    ids=lambda record: type(record).__name__,
)
def test_a_record_survives_json(record):
    assert from_json(to_json(record), type(record)) == record


def test_a_choice_survives_json():
    choice = a_choice()
    assert from_json(to_json(choice), Choice) == choice


def test_the_json_names_the_kind_of_each_step():
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


def test_a_graph_step_among_torch_steps_is_refused():
    value = msgspec.json.decode(to_json(A_RECIPE))
    value["torch_steps"], value["graph_steps"] = value["graph_steps"], value["torch_steps"]
    with pytest.raises(msgspec.ValidationError, match=r"student.*graph_steps"):
        from_json(to_json(value), Recipe)


def test_a_record_is_frozen():
    with pytest.raises(AttributeError):
        PHONE.threads = 4


def test_the_order_of_a_dictionarys_keys_does_not_change_its_digest():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_a_digest_is_the_same_in_every_version_of_edgeopt():
    # If it changes, every existing workspace loses its trials.
    assert digest(("a", 1, 0.5, None)) == "17b71729aa9e49e8c4cf"
