"""A training that the time cuts off gives a network under a key of its own; later the training goes on to its end."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builders import A_DISTILL
from safetensors.torch import load_file
from stub_builds import a_stub_build

from edgeopt.errors import OutOfTimeError
from edgeopt.pipeline.artifacts.networks import StoredNetwork, original_network
from edgeopt.pipeline.artifacts.trained_networks import cut_off, train_network
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import Candidate, as_trained
from edgeopt.pipeline.torch_process.pool import TorchPool
from edgeopt.records.recipe import Distill
from edgeopt.records.scoring import ScoreFloor
from edgeopt.store.ledger import Ledger
from edgeopt.store.workspace import FOLDERS, Workspace

TASK = f"{Path(__file__).parents[1] / 'tiny_task.py'}:task"
EPOCHS = 6
STEPS = (
    Distill(
        epochs=EPOCHS, optimizer="sgd", learning_rate=0.05, weight_decay=0.0, warmup_ratio=0.1, temperature=4.0,
        kl_weight=0.5, mse_weight=0.0, hard_weight=0.5,
    ),
)  # fmt: skip
WITHIN_REACH = ScoreFloor(value=0.1, max_drop=0.5, direction="higher")
OUT_OF_REACH = ScoreFloor(value=2.0, max_drop=0.5, direction="higher")


@pytest.fixture(scope="module")
def pool():
    with closing(TorchPool(TASK, 1)) as pool:
        yield pool


@pytest.fixture
def train(pool, tmp_path):
    """Train in a workspace, and return the network with the epochs that were trained; a stop comes after some."""
    ledgers = []

    def train(name: str, stop_after: int | None = None, floor: ScoreFloor | None = None):
        workspace = Workspace(tmp_path / name)
        for folder in FOLDERS:
            workspace.folder(folder).mkdir(parents=True, exist_ok=True)
        workspace.stop_file.unlink(missing_ok=True)
        ledgers.append(Ledger(workspace.ledger_file))
        build = a_stub_build(
            workspace=workspace, ledger=ledgers[-1], torch_pool=pool, deadline=None, data=SimpleNamespace()
        )
        epochs = []

        def note(done):
            epochs.append(done.epoch)
            if len(epochs) == stop_after:
                workspace.stop_file.touch()

        network = train_network(build, original_network("original", 1000), STEPS, None, 1000, note, floor=floor)
        return build, network, epochs

    yield train
    for ledger in ledgers:
        ledger.close()


def weights_of(build, network):
    return load_file(build.workspace.network(network.key))


def test_a_network_that_was_cut_off_is_kept_apart_and_its_training_goes_on_later(train):
    build, early, epochs = train("parts", stop_after=2, floor=WITHIN_REACH)
    whole_key = build.keys.network(STEPS, None)
    done = len(epochs)  # a third epoch may end before the stop is seen
    assert done in (2, 3)
    assert early.ended_after == done
    assert f"the training was cut off after {done} of {EPOCHS} epochs, because the time was over" in early.notes
    assert early.key == build.keys.network(cut_off(STEPS, done), None) != whole_key
    assert not build.workspace.network(whole_key).exists()
    assert build.ledger.get(build.keys.of("network", torch_steps=STEPS, parent=None), StoredNetwork) is None
    candidate = as_trained(Candidate(steps=STEPS, parent=None), early)
    assert build.keys.network(candidate.steps, None) == early.key
    kept = weights_of(build, early)

    build, whole, rest = train("parts", floor=WITHIN_REACH)
    assert rest == list(range(done, EPOCHS))
    assert (whole.key, whole.ended_after) == (whole_key, None)
    assert not list(build.workspace.folder("checkpoints").iterdir())
    assert weights_of(build, early).keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in weights_of(build, early).items())

    other, at_once, epochs = train("whole", floor=WITHIN_REACH)
    assert epochs == list(range(EPOCHS))
    assert at_once.torch_score == whole.torch_score
    expected = weights_of(other, at_once)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(build, whole).items())


def test_a_network_below_the_limit_is_not_kept_when_the_time_is_over_but_its_last_epoch_is(train):
    with pytest.raises(OutOfTimeError, match=rf"the time was over in epoch \d of {EPOCHS}; with more time it goes on"):
        train("hopeless", stop_after=1, floor=OUT_OF_REACH)
    _, network, rest = train("hopeless", floor=WITHIN_REACH)
    assert rest[0] > 0
    assert network.ended_after is None


@pytest.mark.parametrize(("limit", "training"), [(None, None), (600.0, 540.0), (7200.0, 6900.0)])
def test_the_end_of_a_time_limit_is_for_files(limit, training):
    clock = SimpleNamespace(elapsed=lambda: 550.0)
    build = SimpleNamespace(time_limit_seconds=limit, clock=clock, is_stopped=False)
    build.training_seconds = Build.training_seconds.fget(build)
    assert build.training_seconds == training
    assert Build.may_train.fget(build) is (limit != 600.0)
    assert not Build.is_out_of_time.fget(build)


def test_the_steps_of_a_training_that_was_cut_off_say_when():
    assert cut_off((A_DISTILL,), 3)[-1].ended_after == 3
