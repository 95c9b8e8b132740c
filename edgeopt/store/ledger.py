"""The ledger: one SQLite file that holds every finished part by its key and every trial in the order of its build.

A *part* is anything that is made once and named by everything it depends on (``edgeopt.store.keys``): a network, an
artifact, a measurement, a score, a comparison. A row is written when the part is finished, so an interrupted build
loses only the part in progress.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from edgeopt.errors import DiskFullError, WorkspaceError, is_disk_full
from edgeopt.records.base import Record
from edgeopt.records.codec import from_json, to_json
from edgeopt.records.trial import Trial
from edgeopt.store.keys import Key, Kind

R = TypeVar("R", bound=Record)

SCHEMA_VERSION = 2
_SCHEMA = """
create table if not exists parts (
    kind text not null, key text not null, json blob not null, finished_at real not null, primary key (kind, key));
create table if not exists builds (
    id integer primary key, task text not null, target text not null, fingerprint text not null,
    started_at real not null, ended_at real);
create table if not exists numbers (
    task text not null, recipe text not null, number integer not null, primary key (task, recipe),
    unique (task, number));
create table if not exists trials (
    build integer not null references builds(id), number integer not null, json blob not null,
    finished_at real not null, primary key (build, number));
"""


class Interrupted(NamedTuple):
    """What builds did that were interrupted, and that the next one of the same task and target goes on from."""

    seconds: float
    """From the begin of each to its last finished part."""
    parts: dict[str, int]
    """How many parts of each kind they finished."""


class StoredTrials(NamedTuple):
    """The trials of a build."""

    intact: tuple[Trial, ...]
    damaged: dict[int, str]
    """What is wrong with the others, by number."""


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
                    f"{path} was written by another version of edgeopt (ledger schema {version}; this version reads "
                    f"{SCHEMA_VERSION}). Choose a new folder with --workspace DIR, or delete {path.parent} if its "
                    "trials are no longer needed."
                )
            self._database.executescript(_SCHEMA)
            if "ended_at" not in {row[1] for row in self._database.execute("pragma table_info(builds)")}:
                self._database.execute("alter table builds add column ended_at real")
                self._database.execute("update builds set ended_at = started_at")  # of older versions: not known
            self._database.execute(f"pragma user_version = {SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            raise self._broken(error) from error

    def _broken(self, error: sqlite3.Error) -> WorkspaceError:
        if is_disk_full(error):
            return DiskFullError(error)
        return WorkspaceError(
            f"the ledger {self.path} cannot be used: {error}. Move it away, or choose another folder with "
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

    def get(self, key: Key, record: type[R]) -> R | None:
        """Return a part, or None if it was not finished, was written with other fields, or is damaged."""
        rows = self._run("select json from parts where kind = ? and key = ?", (key.kind, key.digest))
        if not rows:
            return None
        data = rows[0][0]
        assert isinstance(data, bytes)
        try:
            return from_json(data, record)
        except msgspec.DecodeError:
            return None

    def put(self, key: Key, value: Record) -> None:
        """Write a finished part; it is on the disk when this returns."""
        values = (key.kind, key.digest, to_json(value), time.time())
        self._run("insert or replace into parts values (?, ?, ?, ?)", values)

    def remember(
        self, key: Key, record: type[R], make: Callable[[], R], *, is_usable: Callable[[R], bool] = lambda _: True
    ) -> R:
        """Return a part: as it was written, or made now and written.

        Args:
            key: Its key.
            record: Its type.
            make: Makes it; what it raises passes through, and nothing is written.
            is_usable: Whether a part that was found may be reused, for example because its file still exists.
        """
        found = self.get(key, record)
        if found is None or not is_usable(found):
            found = make()
            self.put(key, found)
        return found

    def newest_first(self, kind: Kind, record: type[R]) -> Iterator[R]:
        """Yield all finished parts of a kind, the newest first; those of another version are skipped."""
        for row in self._run("select json from parts where kind = ? order by finished_at desc", (kind,)):
            assert isinstance(row[0], bytes)
            with suppress(msgspec.DecodeError):
                yield from_json(row[0], record)

    def start_build(self, task: str, target: str, fingerprint: str) -> int:
        """Record that a build begins, and return its number."""
        rows = self._run(
            "insert into builds (task, target, fingerprint, started_at) values (?, ?, ?, ?) returning id",
            (task, target, fingerprint, time.time()),
        )
        return int(str(rows[0][0]))

    def end_build(self, build: int) -> None:
        """Record that a build came to its end."""
        self._run("update builds set ended_at = ? where id = ?", (time.time(), build))

    def find_interrupted(self, build: int) -> Interrupted:
        """Return what the interrupted builds right before a build did, of the same task, data and target."""
        rows = self._run(
            "select started_at, ended_at, (select min(started_at) from builds as later where later.id > builds.id) "
            "from builds where id < ? and (task, target, fingerprint) = "
            "(select task, target, fingerprint from builds where id = ?) order by id desc",
            (build, build),
        )
        seconds, parts = 0.0, dict[str, int]()
        for started, ended, next_started in rows:
            if ended is not None:
                break
            found = self._run(
                "select kind, count(*), max(finished_at) from parts where finished_at between ? and ? group by kind",
                (started, next_started),
            )
            for kind, count, _ in found:
                parts[str(kind)] = parts.get(str(kind), 0) + int(str(count))
            seconds += max((float(str(last)) for *_, last in found), default=float(str(started))) - float(str(started))
        return Interrupted(seconds, parts)

    def number_of(self, build: int, recipe: str) -> int:
        """Return the trial number of a recipe in all builds of this one's task; a new recipe gets the next number.

        Args:
            build: The build.
            recipe: Its digest.
        """
        self._run(
            "insert or ignore into numbers (task, recipe, number) select task, ?, 1 + max("
            "(select coalesce(max(number), 0) from numbers where numbers.task = builds.task), "
            "(select coalesce(max(number), 0) from trials join builds as its on its.id = trials.build "
            "where its.task = builds.task)) from builds where id = ?",
            (recipe, build),
        )
        rows = self._run(
            "select number from numbers where recipe = ? and task = (select task from builds where id = ?)",
            (recipe, build),
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

    def trials(self, build: int) -> StoredTrials:
        """Return a build's trials by number, without those that are damaged, and what is wrong with these."""
        rows = self._run("select number, json from trials where build = ? order by number", (build,))
        found, damaged = [], {}
        for number, data in rows:
            assert isinstance(data, bytes)
            try:
                found.append(from_json(data, Trial))
            except msgspec.DecodeError as error:
                damaged[int(str(number))] = (
                    f"trial {number} of build {build} in {self.path} is damaged ({error}). Run the build again: what "
                    "is intact will be reused."
                )
        return StoredTrials(tuple(found), damaged)
