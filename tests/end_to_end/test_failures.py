"""Builds in which user code is wrong, or every training dies: what is said, what is kept, what is tried again."""

import json

import pytest
from building import TESTS, edgeopt, write_target

TASK = f"{TESTS / 'crashing_task.py'}:task"


@pytest.fixture
def build(tmp_path):
    """Return a function that builds the task, whose distillation ends as it is told; always in one workspace."""
    write_target(tmp_path / "tiny.toml")

    def build(how):
        (tmp_path / "how").write_text(how)
        (tmp_path / "died").unlink(missing_ok=True)
        return edgeopt(tmp_path, "build", TASK, "--target", "tiny.toml", "--quick", "--workers", "1", "--json")

    return build


def test_a_mistake_in_a_loss_stops_the_build_with_file_and_line(build):
    done = build("mistake")
    assert done.returncode == 2
    assert done.stdout == ""
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"error: task '{TASK}': distill_loss() failed with TypeError: unsupported operand")
    assert "crashing_task.py, line " in message
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_if_every_training_dies_the_original_in_int8_ships_and_the_same_command_tries_again(build):
    done = build("always")
    assert done.returncode == 1
    document = json.loads(done.stdout)  # nothing that the task prints is in it
    failed = document["failed_trainings"]
    assert failed["failed"] == failed["total"] == 2
    (reason,) = failed["reasons"]
    assert 'killed by SIGSEGV. Its last line on stderr: "corrupted size vs. prev_size".' in reason
    winner = document["winner"]
    assert not winner["recipe"]["torch_steps"]
    assert "quantize" in [step["step"] for step in winner["recipe"]["graph_steps"]]
    done = build("once")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["failed_trainings"] is None
    notes = [note for trial in document["trials"] for note in trial["notes"]]
    assert any(note.startswith("trained in row-major memory and half batches, after a crash") for note in notes)
    assert document["winner"]["size_bytes"] < winner["size_bytes"]
