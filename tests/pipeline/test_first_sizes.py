"""The sizes of the first round: larger ones, where a training would hardly bring a cut network back."""

from types import SimpleNamespace

import msgspec
import pytest
from builders import A_DISTILL, a_budget
from stub_builds import a_stub_build

import edgeopt.pipeline.search.sizes as sizes_module
from edgeopt.errors import StepError
from edgeopt.pipeline.search.candidate import Candidate
from edgeopt.pipeline.search.sizes import KnownSizes
from edgeopt.records.recipe import Importance, Prune
from edgeopt.records.scoring import ScoreFloor

FLOOR = ScoreFloor(value=0.89, max_drop=0.01, direction="higher")


def plan(ratios):
    """Candidates whose widths tell their ratios in thousandths."""
    prunes = [Prune(importance=Importance(), widths={"a": round(1000 * ratio)}, fitted_samples=64) for ratio in ratios]
    return [
        (Candidate(steps=(prune, A_DISTILL), parent=None), ratio) for prune, ratio in zip(prunes, ratios, strict=True)
    ]


@pytest.fixture
def ratios_of(monkeypatch):
    """Return the ratios of the first round, given the score of a fitted network by its ratio."""

    def run(score_of, floor=FLOOR, plans=None):
        def train(build, parent, steps, table, parameters, progress):
            (prune,) = steps
            return SimpleNamespace(torch_score=score_of(prune.widths["a"] / 1000))

        monkeypatch.setattr(sizes_module, "train_network", train)
        monkeypatch.setattr(sizes_module, "group_table_of", lambda *_: (None, None))
        original = SimpleNamespace(parameters=1000)
        texts = []
        pool = SimpleNamespace(share_cores=lambda trainings: None)
        build = a_stub_build(budget=a_budget(), torch_pool=pool, progress=lambda stage, text: texts.append(text))
        known = KnownSizes(build, SimpleNamespace(floor=floor, original=original))
        plans = plan([0.354, 0.125]) if plans is None else plans
        return [round(ratio, 2) for _, ratio in known.within_reach(plans, plan)], texts

    return run


def test_sizes_that_are_near_before_a_training_stay(ratios_of):
    found, texts = ratios_of(lambda ratio: 0.87)
    assert found == [0.35, 0.12]
    assert texts == ["35.4% of the parameters, fitted but not trained: score 0.8700"]


def test_larger_sizes_are_tried_where_they_are_far_and_never_nearly_the_whole_network(ratios_of):
    found, _ = ratios_of(lambda ratio: 0.9 - 0.1 * (1 - ratio))  # 0.595 loses 0.0405, 0.771 loses 0.023
    assert found == [0.77, 0.59]
    found, texts = ratios_of(lambda ratio: 0.1)
    assert found == [0.77, 0.59]
    assert len(texts) == 2  # its root, 0.88, would save too little


def test_a_score_that_should_be_low_and_a_strict_limit(ratios_of):
    lower = ScoreFloor(value=2.02, max_drop=0.02, direction="lower")
    assert ratios_of(lambda ratio: 2.07, lower)[0] == [0.35, 0.12]
    assert ratios_of(lambda ratio: 2.2, lower)[0] == [0.77, 0.59]
    strict = msgspec.structs.replace(FLOOR, value=0.9, max_drop=0.0)
    assert ratios_of(lambda ratio: 0.87, strict)[0] == [0.35, 0.12]


def test_without_a_limit_a_fit_or_a_score_the_sizes_stay(ratios_of):
    assert ratios_of(lambda ratio: 0.1, None)[0] == [0.35, 0.12]
    assert ratios_of(lambda ratio: None)[0] == [0.35, 0.12]
    assert ratios_of(lambda ratio: 0.1, plans=[])[0] == []
    plain = [(Candidate(steps=(Prune(importance=Importance(), widths={"a": 354}), A_DISTILL), parent=None), 0.354)]
    assert ratios_of(lambda ratio: 0.1, plans=plain)[0] == [0.35]

    def fails(ratio):
        raise StepError("train", "out of memory")

    assert ratios_of(fails)[0] == [0.35, 0.12]
