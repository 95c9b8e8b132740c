"""What is tried after an int8 file met its float32 form: its first layers in float, and float16 where int8 lost."""

from contextlib import contextmanager
from types import SimpleNamespace

import msgspec
import pytest
from builders import a_baseline, a_budget, a_comparison, a_device, a_profile, a_recipe, a_trial, an_environment

from edgeopt.errors import StepError
from edgeopt.pipeline.forms import Form
from edgeopt.pipeline.search import float_fallbacks as twins
from edgeopt.pipeline.search.candidate import precision_of
from edgeopt.records.quantization import FloatPrefix
from edgeopt.records.recipe import Quantize, Recipe
from edgeopt.records.trial import Measured

FRONTS = ((), ("stem",), ("stem", "act"), ("stem", "act", "body"))


class ASearch:
    """What ``try_heirs`` asks of a search: it writes down what is measured, and answers with these A/Bs."""

    def __init__(self, front_ratio=0.8, times=(), precisions=("int8", "fp16", "fp32"), kind="measured"):
        self.front_ratio, self._times, self.kept, self.measured = front_ratio, times, {}, []
        self.build = SimpleNamespace(
            device=a_device(kind=kind), profile=msgspec.structs.replace(a_profile(), precisions=precisions),
            progress=lambda *_: None, budget=a_budget(), versions="1", fingerprint="task", seed=0, allow_fallback=(),
            environment=an_environment(), ledger=self, data=SimpleNamespace(calibration_file=lambda _: "calibration"),
        )  # fmt: skip
        self.original, self.networks = object(), {}
        self.exported = SimpleNamespace(sha256="ab" * 32)
        self.scale = SimpleNamespace(comparison=lambda *_: a_comparison(time_ratio=self.front_ratio),
                                     times=lambda _: self._times)  # fmt: skip

    def get(self, _kind, key, _type):
        return self.kept.get(key)

    def put(self, _kind, key, value):
        self.kept[key] = value

    def recipe(self, candidate, steps):
        return Recipe(torch_steps=candidate.steps, graph_steps=steps, seed=0, parent=candidate.parent)

    def tried(self, recipe):
        return recipe in [trial.recipe for trial in self.measured]

    def form(self, candidate, _network, _exported, steps, _seconds, _reasons=()):
        return Form(self.recipe(candidate, steps), None, {})

    def measure(self, form):
        self.measured.append(a_trial(2 + len(self.measured), size_bytes=905, drop=0.0, recipe=form.recipe))
        return self.measured[-1]

    def rewrite(self, _trial, outcome):
        return outcome

    def missed(self, _outcome):
        return set()


def an_int8_trial(twin_ratio):
    return a_trial(1, size_bytes=900, drop=0.0, recipe=a_recipe(int8=True), twin_ratio=twin_ratio)


def tried(search):
    """The precision of what was measured, with its float nodes."""
    return [
        (precision_of(trial.recipe), step.float_nodes if step is not None else ())
        for trial in search.measured
        for step in [next((step for step in trial.recipe.graph_steps if isinstance(step, Quantize)), None)]
    ]


@pytest.fixture
def found(monkeypatch):
    """Let the front that is found be this one."""

    def use(*nodes):
        monkeypatch.setattr(twins, "best_front", lambda *_: FloatPrefix(nodes=nodes))

    return use


@pytest.mark.parametrize(
    ("twin_ratio", "nodes", "front_ratio", "expected"),
    [
        (0.8, ("stem",), 0.8, [("int8", ("stem",))]),
        (0.8, (), 0.8, []),
        (0.4, ("stem",), 0.8, []),
        (1.2, ("stem",), 0.8, [("int8", ("stem",))]),
        (1.2, ("stem",), 1.0, [("int8", ("stem",)), ("fp16", ())]),
        (1.2, (), 0.8, [("fp16", ())]),
    ],
    ids=["a front pays", "no front", "int8 gains enough", "int8 lost, a front pays", "neither pays", "int8 lost"],
)
def test_a_front_is_tried_where_int8_gains_little_and_float16_where_no_int8_form_pays(
    found, twin_ratio, nodes, front_ratio, expected
):
    found(*nodes)
    search = ASearch(front_ratio)
    twins.try_heirs(search, an_int8_trial(twin_ratio))
    assert tried(search) == expected
    twins.try_heirs(search, an_int8_trial(twin_ratio))
    assert len(tried(search)) == len(set(tried(search)))  # nothing twice


def test_int8_that_is_slower_than_the_baseline_leaves_float16_to_try_and_not_where_the_profile_forbids_it(found):
    found()
    slow = a_trial(1, drop=0.0, recipe=a_recipe(int8=True), time_ratio=1.3)
    search, without = ASearch(), ASearch(precisions=("int8", "fp32"))
    for one in (search, without):
        twins.try_heirs(one, slow)
    assert (tried(search), tried(without)) == ([("fp16", ())], [])


def test_nothing_is_tried_on_a_stand_in_nor_after_a_float_file(found):
    found("stem")
    search, stand_in = ASearch(), ASearch(kind="stand-in")
    twins.try_heirs(stand_in, an_int8_trial(1.2))
    twins.try_heirs(search, a_baseline())
    assert not search.measured + stand_in.measured


def test_a_front_that_was_measured_has_its_comparison_with_the_form_it_was_made_of(found):
    found("stem")
    search = ASearch()
    kept = []
    search.rewrite = lambda _trial, outcome: kept.append(outcome) or outcome
    twins.try_heirs(search, an_int8_trial(0.8))
    assert isinstance(kept[0], Measured)
    assert kept[0].against_full_int8.trial == 1


@pytest.mark.parametrize(
    ("times", "sizes", "expected"),
    [
        ((100.0, 95.0, 80.0, 79.0), (1000, 1001, 1002, 1100), FRONTS[2]),
        ((100.0, 99.5, 101.0, 103.0), (1000, 1001, 1002, 1100), ()),
        ((100.0, 80.0), (1000, 1300), ()),
        ((), (1000,), FRONTS[3]),
    ],
    ids=["the least product of time and bytes", "too little gained", "too many bytes", "no times: the A/B tells"],
)
def test_the_front_weighs_time_and_bytes(monkeypatch, tmp_path, times, sizes, expected):
    @contextmanager
    def float_file(*_):
        yield tmp_path / "float.onnx"

    def write_fronts(_step, _head, _calibration, folder, *, fused):
        assert fused
        for index, size in enumerate(sizes):
            (folder / f"{index}.onnx").write_bytes(bytes(size))
        return FRONTS

    monkeypatch.setattr(twins, "float_file", float_file)
    monkeypatch.setattr(twins, "write_fronts", write_fronts)
    search = ASearch(times=times)
    step = next(step for step in a_recipe(int8=True).graph_steps if isinstance(step, Quantize))
    front = twins.best_front(search, step, search.exported, "cd" * 32)
    assert front.nodes == expected
    monkeypatch.setattr(twins, "write_fronts", None)  # a second look asks the ledger
    assert twins.best_front(search, step, search.exported, "cd" * 32) == front
    search.build.profile = msgspec.structs.replace(search.build.profile, title="other words, and no other session")
    assert twins.best_front(search, step, search.exported, "cd" * 32) == front
    search.build.allow_fallback = ("CPUExecutionProvider",)  # others may run the nodes: timed anew
    with pytest.raises(StepError):
        twins.best_front(search, step, search.exported, "cd" * 32)
