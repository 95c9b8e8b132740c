"""The file agent as a process on this machine."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import time

import pytest

from edgeopt.device import file_agent


@pytest.fixture
def ask(tmp_path):
    """Return a function that asks a file agent, whose cache is in the test's folder."""
    process = subprocess.Popen(
        [sys.executable, file_agent.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )

    def send_and_receive(**message):
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline().removeprefix("edgeopt-worker "))

    send_and_receive.pid = process.pid
    with process:
        yield send_and_receive
        process.stdin.close()


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def send_file(ask, name: str, data: bytes, sha256: str) -> dict:
    ask(do="begin", name=name)
    ask(do="write", name=name, data=encode(data[:3]))
    ask(do="write", name=name, data=encode(data[3:]))
    return ask(do="keep", name=name, sha256=sha256)


def test_a_file_is_only_kept_if_it_is_complete(ask, tmp_path):
    sha256 = hashlib.sha256(b"content").hexdigest()
    assert ask(do="have", name="a", sha256=sha256) == {"ok": True, "have": False}
    assert send_file(ask, "a", b"contents", sha256)["kept"] is False
    assert list((tmp_path / "edgeopt").iterdir()) == []
    assert send_file(ask, "a", b"content", sha256)["kept"] is True
    assert ask(do="have", name="a", sha256=sha256)["have"] is True
    assert ask(do="read", name="a", offset=2, bytes=3)["data"] == encode(b"nte")


def test_a_full_disk_is_an_answer(ask, tmp_path):
    ask(do="begin", name="a")
    part = tmp_path / "edgeopt" / f"a.{ask.pid}.part"
    part.unlink()
    part.symlink_to("/dev/full")
    answer = ask(do="write", name="a", data=encode(b"x" * 100_000))
    assert answer["kind"] == "device"
    assert answer["reason"].startswith(f"No space left on device in {tmp_path}/edgeopt (")
    assert ask(do="remove", name="a")["ok"]


def test_files_that_were_not_used_for_a_day_are_removed(tmp_path):
    now = time.time()
    for name, age in (("old", 100_000), ("new", 1000)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (now - age, now - age))
    file_agent.remove_stale(tmp_path, now)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_cache_that_cannot_be_written_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = file_agent.make_folder()
    assert folder.is_dir()
    folder.rmdir()
