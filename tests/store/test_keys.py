"""A key contains every fact that its part depends on, and nothing else: a missing fact is a wrong number later."""

from typing import get_args

import msgspec
import pytest
from builders import a_device, a_profile, a_recipe
from stub_builds import build_facts

from edgeopt.records.codec import from_json, to_json
from edgeopt.records.profile import Runtime
from edgeopt.store.keys import DEPENDENCIES, Dependency, Keys, Kind

PROFILE = a_profile()
CHANGES = {
    "task": {"task": "other data"},
    "makers": {"makers": {"edgeopt": "2"}},
    "seed": {"seed": 1},
    "ceilings": {"max_opset": PROFILE.max_opset - 1},
    "hardware": {"device": msgspec.structs.replace(a_device(), id="another processor")},
    "device": {"device": msgspec.structs.replace(a_device(), kind="stand-in")},
    "providers": {"allow_fallback": ("CPUExecutionProvider",)},
    "session": {"batch_size": 8},
    "timing": {"timing": msgspec.structs.replace(PROFILE.timing, processes=99)},
}
"""For each dependency a change of the build's facts that it contains."""

CONTAINED = {"device": {"hardware"}, "session": {"providers"}}
"""Dependencies whose facts another one contains."""


def test_every_kind_of_part_has_a_row_and_every_dependency_a_change():
    assert set(DEPENDENCIES) == set(get_args(Kind))
    assert set(CHANGES) == set(get_args(Dependency))


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_key_changes_with_each_fact_that_the_part_depends_on_and_with_no_other(kind):
    before = Keys(build_facts()).of(kind, file="a")
    depends_on = set(DEPENDENCIES[kind])
    depends_on |= {inner for outer in depends_on for inner in CONTAINED.get(outer, ())}
    for dependency, changes in CHANGES.items():
        after = Keys(build_facts(**changes)).of(kind, file="a")
        assert (after != before) == (dependency in depends_on), dependency


def test_keys_of_two_kinds_or_with_other_details_differ_and_equal_ones_are_equal():
    keys = Keys(build_facts())
    assert keys.of("score", file="a") == Keys(build_facts()).of("score", file="a")
    assert keys.of("score", file="a") != keys.of("score", file="b")
    assert keys.of("score", file="a").digest != keys.of("sample-scores", file="a").digest


def test_keys_are_the_same_in_every_version_of_edgeopt():
    # If these change, every existing workspace loses its trials.
    keys = Keys(build_facts())
    assert keys.of("artifact", recipe=a_recipe(pruned=True)).digest == "644ac5690b4ea4350510"
    assert keys.of("measurement", file="ab", percentile=90).digest == "a6cb8923d21109a31cb2"
    assert keys.of("score", file="ab").digest == "67921ca8d44af673bbd5"


def test_a_runtime_without_plugins_is_written_and_read_as_before_there_were_any():
    libraries = {"QNNExecutionProvider": "/opt/lib.so"}
    plain, with_plugin = PROFILE.runtime, msgspec.structs.replace(PROFILE.runtime, provider_libraries=libraries)
    assert b"provider_libraries" not in to_json(plain)
    for runtime in (plain, with_plugin):
        assert from_json(to_json(runtime), Runtime) == runtime


def test_other_sizes_of_the_inputs_are_another_measurement():
    sizes = [({},), ({"length": 64},), ({"length": 64}, {"length": 128})]
    assert len({Keys(build_facts(sizes=one)).of("measurement", file="a").digest for one in sizes}) == 3


def test_an_artifacts_key_depends_on_its_whole_recipe():
    keys, recipe = Keys(build_facts()), a_recipe(pruned=True)
    changes = ({}, {"seed": 1}, {"parent": "x"}, {"graph_steps": ()}, {"torch_steps": ()})
    assert len({keys.of("artifact", recipe=msgspec.structs.replace(recipe, **one)) for one in changes}) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 2},
        {"providers": ("CUDAExecutionProvider",)},
        {"provider_libraries": {"CPUExecutionProvider": "/opt/lib.so"}},
        {"allow_spinning": True},
        {"memory_arena": False},
        {"affinity": (0,)},
        {"graph_level": "basic"},
        {"timing": msgspec.structs.replace(PROFILE.timing, processes=9)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_changed_runtime_setting_measures_again(changes):
    before, after = (build_facts(profile=one) for one in (PROFILE, msgspec.structs.replace(PROFILE, **changes)))
    assert Keys(before).of("measurement", file="a") != Keys(after).of("measurement", file="a")


def test_another_library_of_a_plugin_scores_again():
    other = msgspec.structs.replace(PROFILE, provider_libraries={"QNNExecutionProvider": "/opt/lib.so"})
    before, after = (Keys(build_facts(profile=one)).of("score", file="a") for one in (PROFILE, other))
    assert before != after


def test_a_limit_is_in_no_key_so_another_limit_neither_trains_nor_measures_again():
    facts = set(build_facts().__struct_fields__)
    assert not facts & {"limits", "budget"}


def test_the_name_of_a_network_follows_from_its_steps_and_its_parent():
    keys, recipe = Keys(build_facts()), a_recipe(pruned=True)
    name = keys.network(recipe.torch_steps, None)
    assert name == keys.of("network", torch_steps=recipe.torch_steps, parent=None).digest
    assert name != keys.network(recipe.torch_steps, name)
    assert name != keys.network((), None)
