"""A training that crashes is tried again carefully; a crash says nothing about a size; a file that exists is kept."""

import io
import json
import threading
from types import SimpleNamespace

import msgspec
import pytest
from builders import a_baseline, a_budget, a_choice, a_failed_trial, a_recipe, a_trial
from rich.console import Console
from stub_builds import a_stub_build
from test_torch_pool import A_DISTILLATION, ORIGINAL, TASK

from edgeopt.cli.build import exit_code
from edgeopt.errors import CrashError, DeviceLostError, StepError, StoppedError, TaskError
from edgeopt.pipeline.artifacts.networks import StoredNetwork
from edgeopt.pipeline.artifacts.trained_networks import train_with_retry
from edgeopt.pipeline.result.test_set import score_on_test_set
from edgeopt.pipeline.search.candidate import Candidate, CandidateTrials, FinishedSearch, SizeTarget
from edgeopt.pipeline.search.contenders import compare_contenders
from edgeopt.pipeline.search.driver import Search
from edgeopt.pipeline.search.training_cores import in_parallel, tune_training
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.pool import TorchPool
from edgeopt.planning.bisection import Point
from edgeopt.records.choice import count_failed_trainings
from edgeopt.records.trial import Failed
from edgeopt.report.document import build_document, encode
from edgeopt.report.page import render_page
from edgeopt.report.text import print_result
from edgeopt.store.trial_list import TrialList


def a_training(folder):
    return protocol.TrainJob(
        parent=ORIGINAL, table=None, steps=(A_DISTILLATION,), seed=0, checkpoint=str(folder / "checkpoint.safetensors"),
        teacher=str(folder / "teacher"), out=str(folder / "network.safetensors"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Return a function that trains the task of ``crashing_task`` in a real process, in a folder of its own."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pool = TorchPool(f"{TASK.rpartition('/')[0]}/crashing_task.py:task", 1)
        progress = []

        def train(how):
            (folder / "how").write_text(how)
            (folder / "died").unlink(missing_ok=True)
            build = a_stub_build(torch_pool=pool, progress=lambda stage, detail: progress.append(detail))
            return train_with_retry(build, a_training(folder), lambda _: None), progress

        yield train
        pool.close()


def test_a_mistake_in_a_loss_is_not_tried_again(train):
    with pytest.raises(TaskError, match=r"distill_loss\(\) failed with TypeError.*crashing_task\.py, line"):
        train("mistake")


def test_a_training_that_crashes_twice_has_failed_for_a_technical_reason(train):
    with pytest.raises(CrashError, match=r"killed by SIGSEGV.*It did so again in row-major memory and half batches"):
        train("always")


def test_a_training_that_crashes_once_is_done_again_and_a_note_says_so(train):
    done, progress = train("once")
    assert done.best_epoch == 0
    assert done.notes[-1] == (
        "trained in row-major memory and half batches, after a crash: the training process was killed by SIGSEGV. Its "
        'last line on stderr: "corrupted size vs. prev_size".'
    )
    assert progress[0].startswith("trying again in row-major memory")


def test_a_pool_that_is_closed_starts_nothing(tmp_path):
    pool = TorchPool(TASK, 1)
    pool.close()
    with pytest.raises(StoppedError):
        pool.do(a_training(tmp_path), protocol.TrainDone)


def a_failure(number, kind, recipe=None):
    recipe = recipe or msgspec.structs.replace(a_recipe(pruned=True), graph_steps=(), parent=str(number))
    outcome = Failed(stage="train", reason="killed by SIGSEGV.", trace=None, kind=kind)
    return msgspec.structs.replace(a_failed_trial(number), recipe=recipe, outcome=outcome)


def a_search(trials, **attributes):
    runner = SimpleNamespace(trials=list(trials), precisions=("int8", "fp32"), may_improve=lambda network: False)
    return Search(a_stub_build(**attributes), runner)


def test_only_a_failure_that_is_no_crash_says_something_about_a_size():
    search = a_search([a_baseline(), a_trial(1, recipe=a_recipe(int8=True), drop=0.0)])
    crashed, diverged = ([a_failure(2, kind)] for kind in ("crashed", "diverged"))
    in_float = [a_trial(3, recipe=a_recipe(pruned=True)), a_failure(4, "crashed", a_recipe(pruned=True, int8=True))]
    too_low = [a_trial(5, recipe=a_recipe(pruned=True, int8=True), drop=0.5), a_failure(6, "crashed")]
    network = SimpleNamespace(ratio=0.3)
    results = [
        CandidateTrials(None, crashed),
        CandidateTrials(None, diverged),
        CandidateTrials(network, in_float),
        CandidateTrials(network, too_low),
    ]
    assert search.sizes.points(results, [0.5, 0.4, 0.3, 0.3]) == [Point(0.4, False), Point(0.3, False)]


@pytest.mark.parametrize(("kind", "is_unfinished"), [("crashed", True), ("diverged", False), ("refused", False)])
def test_a_search_with_a_crash_has_not_finished(kind, is_unfinished):
    trials = TrialList(None, 1)
    trials.extend([a_baseline(), a_failure(1, kind)])
    assert trials.has_unfinished_trainings == is_unfinished


def test_a_search_that_fails_ends_with_the_trials_there_are_but_not_for_a_mistake_of_the_users():
    search = a_search([a_baseline()])
    search.go_on_if_it_fails(lambda: {}["key"])
    assert search.ended_early == "search: KeyError: 'key'"
    for error in (TaskError("wrong"), DeviceLostError("gone")):
        with pytest.raises(type(error)):
            search.go_on_if_it_fails(lambda error=error: (_ for _ in ()).throw(error))


def test_the_first_exception_stops_all_that_runs_in_parallel():
    stopped = threading.Event()
    pool = SimpleNamespace(count=2, close=stopped.set, share_cores=lambda _: None)
    build = SimpleNamespace(torch_pool=pool)

    def work(fails):
        if fails:
            raise TaskError("wrong")
        assert stopped.wait(60), "the other thread was not stopped"
        raise StoppedError("stopped")

    with pytest.raises(TaskError, match="wrong"):
        in_parallel(build, work, [False, True])


def test_if_the_trial_of_parallel_trainings_crashes_they_run_one_at_a_time():
    def crash(*_):
        raise CrashError("train", "no memory")

    pool = SimpleNamespace(count=2, facts={}, tune=crash)
    ledger = SimpleNamespace(remember=lambda key, kind, make: make())
    search = a_search(
        [], torch_pool=pool, fixed_workers=False, gpus=(), ledger=ledger, effort=SimpleNamespace(candidates=2)
    )
    search.build.clock = SimpleNamespace(stage=lambda _: pytest.MonkeyPatch.context())
    tune_training(search.build, may_try=True)
    assert pool.count == 1


def test_a_size_whose_parent_cannot_be_analysed_is_left_out(monkeypatch):
    def fail(*_):
        raise StepError("analyse", "no labels")

    monkeypatch.setattr("edgeopt.pipeline.search.planner.pruned", fail)
    search = a_search([])
    search.runner.original = None
    assert search.planner.plan(SizeTarget(0.25, None), None) is None
    assert search.notes == ("A network with 25.0% of the parameters was not tried: no labels",)


def test_a_network_that_cannot_be_studied_is_not_trained_for_few_bits(monkeypatch):
    def fail(*_):
        raise StepError("quantize", "no layer computes in int8")

    monkeypatch.setattr("edgeopt.pipeline.search.planner.training_for_few_bits", fail)
    search = a_search([])
    search.runner.exported = None
    assert search.planner.few_bits(SimpleNamespace(key=None)) == []
    assert search.planner.notes == [
        "Training for int8 with weights in few bits was not tried: no layer computes in int8"
    ]


@pytest.mark.parametrize(
    ("further", "has_finished", "has_winner", "expected"),
    [
        ("if needed", False, True, True),
        ("if needed", True, True, False),
        ("if needed", True, False, True),
        ("always", True, True, True),
        ("never", False, False, False),
        ("never", True, False, False),
    ],
)
def test_a_finished_search_goes_on_if_no_trial_keeps_the_limits_or_if_asked(
    further, has_finished, has_winner, expected
):
    limits = a_budget(max_size_bytes=2_000_000 if has_winner else 1)
    search = a_search([a_baseline(), a_trial(1, recipe=a_recipe(int8=True), drop=0.0)], budget=limits)
    search.further = further
    finished = FinishedSearch(candidates=(), notes=("kept",)) if has_finished else None
    assert search.goes_on(finished) is expected
    assert len(search.own_notes) == (not has_winner)
    assert search.planner.notes == []  # what is only true of this build is not kept with the search


def test_without_training_only_networks_that_exist_are_looked_at():
    stored = StoredNetwork(
        key="k", source="x", parameters=1, ratio=0.5, torch_score=None, proof_error=None, notes=(), seconds=0.0
    )
    candidate = Candidate(steps=(A_DISTILLATION,), parent=None)
    for further, known, expected in (("never", None, False), ("never", stored, True), ("if needed", None, True)):
        keys = SimpleNamespace(of=lambda *_, **__: "key")
        search = a_search([], keys=keys, ledger=SimpleNamespace(get=lambda *_, known=known: known))
        search.further = further
        assert search.may_make(candidate) is expected


def test_a_candidate_of_a_finished_search_is_known():
    search = a_search([])
    search.candidates = [Candidate(steps=(A_DISTILLATION,), parent=None)]
    assert search.is_known(Candidate(steps=(A_DISTILLATION,), parent=None))
    assert not search.is_known(Candidate(steps=(A_DISTILLATION,), parent="other"))


def test_a_comparison_that_fails_leaves_the_file_that_won():
    def fail(_):
        raise StepError("compare", "the worker died")

    trial = a_trial(1, recipe=a_recipe(int8=True), drop=0.0, time_ratio=None)
    search, notes = a_search([a_baseline(), trial]), {}
    search.build.clock = SimpleNamespace(stage=lambda _: pytest.MonkeyPatch.context())
    search.runner.build = search.build
    search.runner.needs_comparison = lambda number: number == 1
    search.runner.compare, search.runner.add_note = fail, notes.__setitem__
    compare_contenders(search.runner, may_add=True)
    assert notes == {1: "a comparison failed: the worker died"}


def test_a_test_set_that_fails_costs_only_its_scores():
    def fail():
        raise TaskError("task 'mine': test_batches() failed with KeyError: 'x'.")

    build = a_stub_build(data=SimpleNamespace(test_set=fail))
    build.clock = SimpleNamespace(stage=lambda _: pytest.MonkeyPatch.context())
    choice = score_on_test_set(build, None, a_choice())
    assert choice.winner == a_choice().winner
    assert choice.test is None
    assert choice.notes == ("Not scored on the test set: task 'mine': test_batches() failed with KeyError: 'x'.",)


def with_failures(*failures, measured=()):
    original = a_trial(1, recipe=a_recipe(int8=True), drop=0.0)
    choice = a_choice((a_baseline(), original, *measured, *failures))
    return msgspec.structs.replace(choice, failed_trainings=count_failed_trainings(choice.trials))


def test_terminal_page_and_json_say_how_many_trainings_failed_and_why():
    trained = msgspec.structs.replace(a_recipe(pruned=True, int8=True), parent="another")
    choice = with_failures(
        a_failure(3, "crashed"), a_failure(4, "crashed"), measured=[a_trial(2, recipe=trained, score=0.5)]
    )
    document = build_document(choice)
    sentence = "2 of 3 trainings failed: trials 3 and 4: train: killed by SIGSEGV. Run the same command to try again."
    console = Console(width=300, record=True, file=io.StringIO())
    print_result(document, console, out=None)
    assert sentence in console.export_text()
    assert sentence in render_page(document)
    found = json.loads(encode(document))
    assert found["failed_trainings"] == {
        "failed": 2, "total": 3, "diverged": 0, "reasons": {"train: killed by SIGSEGV.": [3, 4]},
    }  # fmt: skip
    assert [trial["failure"] for trial in found["trials"]] == [None, None, None, "crashed", "crashed"]
    assert exit_code(choice) == 0


def test_the_exit_code_is_1_if_every_training_failed_even_with_a_winner_but_not_if_all_diverged():
    choice = with_failures(a_failure(2, "crashed"), a_failure(3, "diverged"))
    assert choice.winner is not None
    assert exit_code(choice) == 1
    assert exit_code(with_failures(a_failure(2, "diverged"), a_failure(3, "diverged"))) == 0
    early = msgspec.structs.replace(with_failures(), ended_early="analyse: it died")
    assert exit_code(early) == 1
    assert "The search ended early: analyse: it died." in render_page(build_document(early))
