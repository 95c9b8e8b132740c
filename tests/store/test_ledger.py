import multiprocessing
import sqlite3

import pytest
from builders import a_trial

from edgeopt.errors import WorkspaceError
from edgeopt.records.recipe import Importance, Prune
from edgeopt.records.trial import Score
from edgeopt.store.keys import Key
from edgeopt.store.ledger import SCHEMA_VERSION, Ledger
from edgeopt.store.workspace import Workspace

SCORE = Score(value=0.9, drop=0.01, drop_ci95=(0.0, 0.02), samples=100)


def test_a_part_is_found_again_by_kind_and_key(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.put(Key("score", "a"), SCORE)
    ledger.close()
    again = Ledger(tmp_path / "ledger.sqlite")
    assert again.get(Key("score", "a"), Score) == SCORE
    assert again.get(Key("score", "b"), Score) is None
    assert again.get(Key("network", "a"), Score) is None
    again.close()


def test_a_part_with_other_fields_is_made_again(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.put(Key("score", "a"), Prune(importance=Importance(method="l1"), widths={}))
    assert ledger.get(Key("score", "a"), Score) is None
    ledger.close()


def test_a_part_is_made_once_and_again_only_if_it_cannot_be_used(tmp_path):
    ledger, made = Ledger(tmp_path / "ledger.sqlite"), []

    def make():
        made.append(len(made))
        return SCORE

    for is_usable, times in ((lambda _: True, 1), (lambda _: True, 1), (lambda _: False, 2)):
        assert ledger.remember(Key("score", "a"), Score, make, is_usable=is_usable) == SCORE
        assert len(made) == times
    ledger.close()


def test_a_part_that_cannot_be_made_is_not_written(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(ZeroDivisionError):
        ledger.remember(Key("score", "a"), Score, lambda: 1 / 0)
    assert ledger.get(Key("score", "a"), Score) is None
    ledger.close()


CUT = "substr(json, 1, 20)"
NOT_UTF8 = """replace(json, cast('"' as blob), x'22ff')"""


def damage(path, table, how):
    """Damage the JSON of every row of a table."""
    with sqlite3.connect(path) as database:
        database.execute(f"update {table} set json = cast({how} as blob)")
    database.close()


@pytest.mark.parametrize("how", [CUT, NOT_UTF8], ids=["cut", "not UTF-8"])
def test_a_damaged_part_is_made_again_and_a_damaged_trial_is_set_aside(tmp_path, how):
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.put(Key("score", "a"), SCORE)
    build = ledger.start_build("fashion", "phone", "f")
    ledger.add_trial(build, a_trial(number=0))
    ledger.close()
    damage(path, "parts", how)
    damage(path, "trials", how)
    again = Ledger(path)
    assert again.get(Key("score", "a"), Score) is None
    assert list(again.newest_first("score", Score)) == []
    again.add_trial(build, a_trial(number=1))
    stored = again.trials(build)
    assert [trial.number for trial in stored.intact] == [1]
    assert f"trial 0 of build {build} in {path} is damaged" in stored.damaged[0]
    again.close()


def test_a_ledger_of_another_version_is_met_with_a_sentence(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as database:
        database.execute(f"pragma user_version = {SCHEMA_VERSION - 1}")
    database.close()
    with pytest.raises(WorkspaceError, match=f"schema 1; this version reads {SCHEMA_VERSION}.*--workspace"):
        Ledger(path)


def test_trials_come_back_by_build(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    first, second = (ledger.start_build("fashion", "phone", "f") for _ in range(2))
    ledger.add_trial(second, a_trial(number=1))
    ledger.add_trial(second, a_trial(number=0))
    assert ledger.trials(first).intact == ()
    assert [trial.number for trial in ledger.trials(second).intact] == [0, 1]
    assert [row[0] for row in ledger.builds()] == [second, first]
    assert ledger.builds()[0][4] == 2
    ledger.close()


def test_what_interrupted_builds_finished_is_known_to_the_next_one_of_the_same_target(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ended = ledger.start_build("fashion", "phone", "f")
    ledger.put(Key("network", "of the build that ended"), SCORE)
    ledger.end_build(ended)
    for name in ("first", "second"):
        ledger.start_build("fashion", "phone", "f")
        ledger.put(Key("network", name), SCORE)
        ledger.put(Key("score", name), SCORE)
        ledger.start_build("fashion", "car", "f")
        ledger.put(Key("artifact", name), SCORE)
    found = ledger.find_interrupted(ledger.start_build("fashion", "phone", "f"))
    assert found.parts == {"network": 2, "score": 2}
    assert 0 < found.seconds < 10
    assert ledger.find_interrupted(ledger.start_build("fashion", "phone", "another model")).parts == {}


def test_builds_of_a_ledger_that_did_not_record_their_end_are_not_interrupted(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as database:
        database.execute("alter table builds drop column ended_at")
        database.execute("insert into builds (task, target, fingerprint, started_at) values ('t', 'phone', 'f', 1.0)")
    database.close()
    ledger = Ledger(path)
    ledger.put(Key("network", "old"), SCORE)
    assert ledger.find_interrupted(ledger.start_build("t", "phone", "f")).parts == {}


def test_a_file_that_is_not_a_ledger_is_reported(tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"this is not a database, it is a text that is long enough" * 20)
    with pytest.raises(WorkspaceError, match="cannot be used"):
        Ledger(tmp_path / "ledger.sqlite")


def hold(root, ready, done):
    with Workspace(root).open():
        ready.set()
        done.wait(30)


def test_a_workspace_has_one_build_at_a_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, done))
    other.start()
    assert ready.wait(30)
    with pytest.raises(WorkspaceError, match=rf"process {other.pid}.*--workspace"), Workspace(tmp_path).open():
        pass
    done.set()
    other.join(30)
    with Workspace(tmp_path).open():
        pass


def test_a_workspace_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be written"), Workspace(tmp_path / "file" / "ws").open():
        pass


def test_an_artifact_is_kept_under_its_hash(tmp_path):
    with Workspace(tmp_path).open() as workspace:
        made = tmp_path / "made.onnx"
        made.write_bytes(b"abc")
        sha256 = workspace.keep_artifact(made)
        assert workspace.artifact(sha256).read_bytes() == b"abc"
        assert not made.exists()
