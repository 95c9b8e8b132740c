"""The ledger: one SQLite file that holds every finished part by its key and every trial in the order of its build.

A *part* is anything that is made once and named by what it depends on: a network, an artifact, a measurement, a score,
a comparison. A row is written when the part is finished, so an interrupted build finds all but the part under way.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from edgeopt.errors import DiskFullError, WorkspaceError, is_disk_full
from edgeopt.records.base import Record
from edgeopt.records.codec import from_json, to_json
from edgeopt.records.trial import Trial

Kind = Literal[
    "network", "diverged", "export", "artifact", "measurement", "score", "comparison", "search", "agreement",
    "study", "latency", "no-latency", "allocation", "layer-times", "curve", "front",
]  # fmt: skip
R = TypeVar("R", bound=Record)

SCHEMA_VERSION = 1
_SCHEMA = """
create table if not exists parts (
    kind text not null, key text not null, json blob not null, finished_at real not null, primary key (kind, key));
create table if not exists builds (
    id integer primary key, task text not null, target text not null, fingerprint text not null,
    started_at real not null);
create table if not exists trials (
    build integer not null references builds(id), number integer not null, json blob not null,
    finished_at real not null, primary key (build, number));
"""


class Ledger:
    """Read and write the ledger; safe to share between threads.

    Raises:
        WorkspaceError: the file is not a ledger of this version, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.Lock()
        try:
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = full")
            version = int(self._database.execute("pragma user_version").fetchone()[0])
            if version not in (0, SCHEMA_VERSION):
                raise WorkspaceError(
                    f"{path} was written by another version of edgeopt (schema {version}, this one reads "
                    f"{SCHEMA_VERSION}). Give another folder with --workspace DIR."
                )
            self._database.executescript(_SCHEMA)
            self._database.execute(f"pragma user_version = {SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            raise self._broken(error) from error

    def _broken(self, error: sqlite3.Error) -> WorkspaceError:
        if is_disk_full(error):
            return DiskFullError(error)
        return WorkspaceError(
            f"the ledger {self.path} cannot be used: {error}. Move it away, or give another folder with "
            "--workspace DIR."
        )

    def _run(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        with self._mutex:
            try:
                return self._database.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise self._broken(error) from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def get(self, kind: Kind, key: str, record: type[R]) -> R | None:
        """Return a part, or None where it was not finished (or was written with other fields)."""
        rows = self._run("select json from parts where kind = ? and key = ?", (kind, key))
        if not rows:
            return None
        data = rows[0][0]
        assert isinstance(data, bytes)
        try:
            return from_json(data, record)
        except msgspec.ValidationError:
            return None

    def newest_first(self, kind: Kind, record: type[R]) -> Iterator[R]:
        """Yield all finished parts of a kind, the newest first; those of another version are passed over."""
        for row in self._run("select json from parts where kind = ? order by finished_at desc", (kind,)):
            assert isinstance(row[0], bytes)
            with suppress(msgspec.ValidationError):
                yield from_json(row[0], record)

    def put(self, kind: Kind, key: str, value: Record) -> None:
        """Write a finished part; it is on the disk when this returns."""
        self._run("insert or replace into parts values (?, ?, ?, ?)", (kind, key, to_json(value), time.time()))

    def start_build(self, task: str, target: str, fingerprint: str) -> int:
        """Note that a build begins and return its number."""
        rows = self._run(
            "insert into builds (task, target, fingerprint, started_at) values (?, ?, ?, ?) returning id",
            (task, target, fingerprint, time.time()),
        )
        return int(str(rows[0][0]))

    def add_trial(self, build: int, trial: Trial) -> None:
        """Write a finished trial."""
        self._run(
            "insert or replace into trials values (?, ?, ?, ?)", (build, trial.number, to_json(trial), time.time())
        )

    def builds(self) -> list[tuple[int, str, str, float, int]]:
        """Return ``(id, task, target, started_at, number of trials)`` of every build, newest first."""
        rows = self._run(
            "select id, task, target, started_at, (select count(*) from trials where build = builds.id) "
            "from builds order by id desc"
        )
        return [(int(str(r[0])), str(r[1]), str(r[2]), float(str(r[3])), int(str(r[4]))) for r in rows]

    def trials(self, build: int) -> tuple[Trial, ...]:
        """Return a build's trials by number."""
        rows = self._run("select json from trials where build = ? order by number", (build,))
        return tuple(from_json(bytes(row[0]), Trial) for row in rows if isinstance(row[0], bytes))
