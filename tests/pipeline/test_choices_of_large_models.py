"""What is not tried with a model because of its size."""

from types import SimpleNamespace

import pytest

from edgeopt.pipeline.artifacts import large_models
from edgeopt.pipeline.artifacts.networks import original_network


def a_build(*, gpus="", training=True):
    profile = SimpleNamespace(precisions=("int8", "fp32"))
    task = SimpleNamespace(training=training or None)
    return SimpleNamespace(data=SimpleNamespace(task=task), gpus=gpus, profile=profile)


@pytest.mark.parametrize(
    ("parameters", "gpus", "trains"),
    [(1_000_000, "", True), (500_000_000, "", True), (1_000_000_000, "", False), (1_000_000_000, "cuda:0", True)],
)
def test_a_network_trains_if_its_copies_fit_into_the_memory(monkeypatch, parameters, gpus, trains):
    monkeypatch.setattr(large_models, "total_memory_bytes", lambda: 16e9)
    original = original_network("original", parameters)
    assert large_models.may_train(a_build(gpus=gpus), original) is trains
    assert not large_models.may_train(a_build(gpus=gpus, training=False), original)


def test_the_report_says_why_nothing_was_trained(monkeypatch):
    monkeypatch.setattr(large_models, "total_memory_bytes", lambda: 16e9)
    monkeypatch.setattr(large_models, "is_pair", lambda build, exported: True)
    notes = large_models.size_notes(a_build(), original_network("original", 1_100_000_000), None)
    assert notes[0].startswith(
        "Not pruned or trained: with 1.10 billion parameters that takes at least 31 GB (7 copies of the weights), and "
        "this machine has 16 GB."
    )
    assert notes[1].startswith("Int8 was tried for the weights only")


@pytest.mark.parametrize(("megabytes", "expected"), [(1, (8, 8)), (100, (8, 2)), (500, (4, 1)), (20_000, (1, 1))])
def test_files_whose_steps_exceed_half_of_the_memory_are_not_made_at_a_time(monkeypatch, megabytes, expected):
    monkeypatch.setattr(large_models, "total_memory_bytes", lambda: 16e9)
    monkeypatch.setattr(large_models, "measure_bytes", lambda path: megabytes * 10**6)
    build = a_build()
    build.workspace = SimpleNamespace(artifact=lambda sha256: sha256)
    exported = SimpleNamespace(sha256="file")
    found = [large_models.files_at_a_time(build, exported, 8, candidates=candidates) for candidates in (1, 8)]
    assert tuple(found) == expected


def test_the_memory_of_this_machine_is_a_number_of_bytes():
    assert 2**28 < large_models.total_memory_bytes() < 2**50
