"""Debug records: on stderr, in a file that stays small, and nowhere by default."""

import logging
import subprocess
import sys
import threading

import pytest

from edgeopt.logs import PROGRESS_LOGGER, log_to_file, log_to_stderr

LOGGER = logging.getLogger("edgeopt.device.ssh")


def test_nothing_is_printed_by_default(capsys):
    LOGGER.debug("connecting")
    assert capsys.readouterr() == ("", "")


def test_records_go_to_stderr_with_the_time_and_the_module(capsys):
    with log_to_stderr():
        LOGGER.debug("connecting to %s", "pi")
    LOGGER.debug("afterwards")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" ", 1)[1] for line in err.splitlines()] == ["edgeopt.device.ssh: connecting to pi"]


def test_records_are_appended_to_the_file_with_time_thread_and_module(tmp_path, capsys):
    path = tmp_path / "log.txt"
    with log_to_file(path):
        LOGGER.debug("one")
    with log_to_file(path):
        thread = threading.Thread(target=LOGGER.debug, args=("two",), name="worker-3")
        thread.start()
        thread.join()
    assert [line.split(" ", 2)[2] for line in path.read_text().splitlines()] == [
        "MainThread edgeopt.device.ssh: one",
        "worker-3 edgeopt.device.ssh: two",
    ]
    assert capsys.readouterr() == ("", "")


def test_progress_goes_to_the_file_only_as_the_display_shows_it_on_stderr(tmp_path, capsys):
    with log_to_stderr(), log_to_file(tmp_path / "log.txt"):
        logging.getLogger(PROGRESS_LOGGER).debug("train: epoch 3")
    assert "train: epoch 3" in (tmp_path / "log.txt").read_text()
    assert capsys.readouterr().err == ""


def test_the_file_does_not_grow_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeopt.logs.MAX_LOG_BYTES", 1000)
    with log_to_file(tmp_path / "log.txt"):
        for number in range(100):
            LOGGER.debug("record %d %s", number, "x" * 50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "log.txt.1"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert "record 99 " in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("path", ["/dev/full", "/nowhere/log.txt"])
def test_a_log_that_cannot_be_written_stops_nothing(path, tmp_path, capsys):
    with log_to_file(tmp_path.joinpath(path)):
        LOGGER.debug("lost")
    assert capsys.readouterr() == ("", "")


def test_handlers_of_the_users_own_code_get_nothing(tmp_path, capsys):
    code = (
        "import logging, pathlib, sys; from edgeopt.logs import log_to_file\n"
        "logging.basicConfig(level=logging.DEBUG)\n"
        "with log_to_file(pathlib.Path(sys.argv[1])): logging.getLogger('edgeopt.x').debug('inside')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "log.txt"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "inside" in (tmp_path / "log.txt").read_text()
