"""After an int8 trial was compared with its float counterpart: a float prefix, and float16 if int8 lost."""

from contextlib import contextmanager
from types import SimpleNamespace

import msgspec
import pytest
from builders import a_baseline, a_comparison, a_device, a_profile, a_recipe, a_trial
from stub_builds import a_stub_build

from edgeopt.errors import StepError
from edgeopt.pipeline.search.candidate import Variant
from edgeopt.pipeline.search.contenders import try_fallbacks
from edgeopt.pipeline.search.variants import float_fallbacks
from edgeopt.records.quantization import FloatPrefix
from edgeopt.records.recipe import Quantize
from edgeopt.records.trial import Measured

PREFIXES = ((), ("stem",), ("stem", "act"), ("stem", "act", "body"))


class DictLedger:
    """Keeps parts in a dictionary."""

    def __init__(self):
        self.parts = {}

    def remember(self, key, _record, make):
        if key not in self.parts:
            self.parts[key] = make()
        return self.parts[key]


class RecordingRunner:
    """Writes down what is measured, and answers with these times and A/Bs."""

    def __init__(self, prefix_ratio=0.8, times=(), precisions=("int8", "fp16", "fp32"), kind="measured"):
        self.measured = []
        self.rewritten = []
        profile = msgspec.structs.replace(a_profile(), precisions=precisions)
        self.build = a_stub_build(
            profile=profile, device_info=a_device(kind=kind), ledger=DictLedger(),
            data=SimpleNamespace(calibration_file=lambda _: "calibration"),
        )  # fmt: skip
        self.original, self.networks = object(), {}
        self.exported = SimpleNamespace(sha256="ab" * 32)
        self.evaluator = SimpleNamespace(
            build=self.build, comparison=lambda *_: a_comparison(time_ratio=prefix_ratio), times=lambda _: times
        )

    def has_tried(self, recipe):
        return recipe in [trial.recipe for trial in self.measured]

    def make_variant(self, candidate, _network, _exported, steps, _spent, _reasons=()):
        return Variant(candidate.recipe(steps, 0), None, {})

    def measure(self, variant):
        self.measured.append(a_trial(2 + len(self.measured), size_bytes=905, drop=0.0, recipe=variant.recipe))
        return self.measured[-1]

    def rewrite(self, trial, outcome):
        self.rewritten.append(outcome)
        return msgspec.structs.replace(trial, outcome=outcome)

    def missed_limits(self, _outcome):
        return set()


def an_int8_trial(float_ratio):
    return a_trial(1, size_bytes=900, drop=0.0, recipe=a_recipe(int8=True), float_ratio=float_ratio)


def tried(runner):
    """The precision of everything that was measured, with its float nodes."""
    return [
        (trial.recipe.precision, step.float_nodes if step is not None else ())
        for trial in runner.measured
        for step in [next((step for step in trial.recipe.graph_steps if isinstance(step, Quantize)), None)]
    ]


@pytest.fixture
def best_prefix(monkeypatch):
    """Let the best float prefix be this one."""

    def use(*nodes):
        monkeypatch.setattr(float_fallbacks, "best_float_prefix", lambda *_: FloatPrefix(nodes=nodes))

    return use


@pytest.mark.parametrize(
    ("float_ratio", "nodes", "prefix_ratio", "expected"),
    [
        (0.8, ("stem",), 0.8, [("int8", ("stem",))]),
        (0.8, (), 0.8, []),
        (0.4, ("stem",), 0.8, []),
        (1.2, ("stem",), 0.8, [("int8", ("stem",))]),
        (1.2, ("stem",), 1.0, [("int8", ("stem",)), ("fp16", ())]),
        (1.2, (), 0.8, [("fp16", ())]),
    ],
    ids=["a prefix pays", "no prefix", "int8 gains enough", "int8 lost, a prefix pays", "neither pays", "int8 lost"],
)
def test_a_float_prefix_is_tried_if_int8_gains_little_and_float16_if_no_int8_variant_pays(
    best_prefix, float_ratio, nodes, prefix_ratio, expected
):
    best_prefix(*nodes)
    runner = RecordingRunner(prefix_ratio)
    try_fallbacks(runner, an_int8_trial(float_ratio))
    assert tried(runner) == expected
    try_fallbacks(runner, an_int8_trial(float_ratio))
    assert len(tried(runner)) == len(set(tried(runner)))  # nothing twice


def test_if_int8_is_slower_than_the_baseline_float16_is_tried_unless_the_target_forbids_it(best_prefix):
    best_prefix()
    slow = a_trial(1, drop=0.0, recipe=a_recipe(int8=True), time_ratio=1.3)
    runner, without = RecordingRunner(), RecordingRunner(precisions=("int8", "fp32"))
    for one in (runner, without):
        try_fallbacks(one, slow)
    assert (tried(runner), tried(without)) == ([("fp16", ())], [])


def test_nothing_is_tried_on_a_stand_in_or_after_a_float_file(best_prefix):
    best_prefix("stem")
    runner, stand_in = RecordingRunner(), RecordingRunner(kind="stand-in")
    try_fallbacks(stand_in, an_int8_trial(1.2))
    try_fallbacks(runner, a_baseline())
    assert not runner.measured + stand_in.measured


def test_a_measured_float_prefix_is_compared_with_the_full_int8_trial_it_was_made_of(best_prefix):
    best_prefix("stem")
    runner = RecordingRunner()
    try_fallbacks(runner, an_int8_trial(0.8))
    assert isinstance(runner.rewritten[0], Measured)
    assert runner.rewritten[0].against_full_int8.trial == 1


@pytest.mark.parametrize(
    ("times", "sizes", "expected"),
    [
        ((100.0, 95.0, 80.0, 79.0), (1000, 1001, 1002, 1100), PREFIXES[2]),
        ((100.0, 99.5, 101.0, 103.0), (1000, 1001, 1002, 1100), ()),
        ((100.0, 80.0), (1000, 1300), ()),
        ((), (1000,), PREFIXES[3]),
    ],
    ids=["the least product of time and bytes", "too little gained", "too many bytes", "no times: the A/B decides"],
)
def test_the_best_float_prefix_has_the_least_product_of_time_and_bytes(monkeypatch, tmp_path, times, sizes, expected):
    @contextmanager
    def float_file(*_):
        yield tmp_path / "float.onnx"

    def write_files(_step, _source, _calibration, folder, *, fused):
        assert fused
        for index, size in enumerate(sizes):
            (folder / f"{index}.onnx").write_bytes(bytes(size))
        return PREFIXES

    monkeypatch.setattr(float_fallbacks, "float_file", float_file)
    monkeypatch.setattr(float_fallbacks, "write_float_prefix_files", write_files)
    runner = RecordingRunner(times=times)
    step = next(step for step in a_recipe(int8=True).graph_steps if isinstance(step, Quantize))

    def best(**facts):
        runner.build.keys = a_stub_build(facts=facts).keys
        return float_fallbacks.best_float_prefix(runner.evaluator, step, runner.exported, "cd" * 32)

    prefix = best()
    assert prefix.nodes == expected
    monkeypatch.setattr(float_fallbacks, "write_float_prefix_files", None)  # a second look asks the ledger
    assert best() == prefix
    with pytest.raises(StepError):  # others may run the nodes: timed again
        best(allow_fallback=("CPUExecutionProvider",))
