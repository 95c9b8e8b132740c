"""The courier as a process of this machine."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import time

import pytest

from edgeopt.device import file_agent as courier


@pytest.fixture
def there(tmp_path):
    """Return a function that asks one courier, whose cache is a folder of the test."""
    process = subprocess.Popen(
        [sys.executable, courier.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )

    def ask(**message):
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline().removeprefix("edgeopt-worker "))

    ask.pid = process.pid
    with process:
        yield ask
        process.stdin.close()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def send(there, name: str, data: bytes, sha256: str) -> dict:
    there(do="begin", name=name)
    there(do="write", name=name, data=encoded(data[:3]))
    there(do="write", name=name, data=encoded(data[3:]))
    return there(do="keep", name=name, sha256=sha256)


def test_a_file_is_kept_only_whole(there, tmp_path):
    sha256 = hashlib.sha256(b"content").hexdigest()
    assert there(do="have", name="a", sha256=sha256) == {"ok": True, "have": False}
    assert send(there, "a", b"contents", sha256)["kept"] is False
    assert list((tmp_path / "edgeopt").iterdir()) == []
    assert send(there, "a", b"content", sha256)["kept"] is True
    assert there(do="have", name="a", sha256=sha256)["have"] is True
    assert there(do="read", name="a", offset=2, bytes=3)["data"] == encoded(b"nte")


def test_a_full_disk_is_an_answer(there, tmp_path):
    there(do="begin", name="a")
    part = tmp_path / "edgeopt" / f"a.{there.pid}.part"
    part.unlink()
    part.symlink_to("/dev/full")
    answer = there(do="write", name="a", data=encoded(b"x" * 100_000))
    assert answer["kind"] == "device"
    assert answer["reason"].startswith(f"No space left on device in {tmp_path}/edgeopt, where ")
    assert there(do="remove", name="a")["ok"]


def test_what_was_not_used_for_a_day_is_removed(tmp_path):
    now = time.time()
    for name, age in (("old", 100_000), ("new", 1000)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (now - age, now - age))
    courier.remove_stale(tmp_path, now)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_cache_that_cannot_be_written_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = courier.make_folder()
    assert folder.is_dir()
    folder.rmdir()
