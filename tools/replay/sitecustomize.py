"""Records what every timing worker answers, or gives recorded answers instead; for ``tools/compare_builds.py``.

Python imports this file at start-up where its folder is on ``PYTHONPATH``. In any process but the worker
(``edgeopt/bench/worker.py``) it does nothing. A worker that was asked to time something becomes a proxy: the real
worker runs as its child (recording), or nothing runs and the recorded answers are given (replaying). Requests that
compute instead of timing (outputs, descriptions, conversions) always run.

Answers are kept by what was timed: the mode, the content of the model files and the settings of the session. The paths
and the names of the records do not matter, so another version of edgeopt can replay them.
"""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO, TextIO

FOLDER = "EDGEOPT_REPLAY_FOLDER"
MODE = "EDGEOPT_REPLAY_MODE"  # record or replay
TIMED = ("time", "memory", "nodes", "serve")
SETTINGS = ("providers", "threads", "graph_level", "prepacking", "memory_arena", "batch_size", "rounds", "min_runs")
SENTINEL = b"edgeopt-worker "


def name_of(request: dict[str, Any]) -> str:
    """Return what names a request: its mode, what the model files hold, and how the session runs."""
    files = request["models"] or [request["model"]]
    content = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
    settings = [request.get(key) for key in SETTINGS]
    text = json.dumps([request["mode"], content, settings])
    return f"{request['mode']}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def numbered(folder: Path, name: str, suffix: str) -> Path:
    """Claim the next number of a name, in the order in which its processes start (one at a time); return its file."""
    number = 0
    while (claim := folder / f"{name}-{number}{suffix}").exists():
        number += 1
    claim.touch()
    return folder / f"{name}-{number}.jsonl"


def start_worker(first: bytes) -> subprocess.Popen[bytes]:
    """Start the real worker with its first line; this file does nothing there."""
    environment = {key: value for key, value in os.environ.items() if key != MODE}
    worker = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    worker.stdin.write(first)
    worker.stdin.flush()
    return worker


def forward(worker: subprocess.Popen[bytes], source: BinaryIO, target: BinaryIO, log: TextIO | None = None) -> int:
    """Hand lines of stdin to the worker and its answers to ``target``, until either ends."""
    while True:
        begin = time.monotonic()
        answer = worker.stdout.readline()
        while answer and not answer.startswith(SENTINEL):
            answer = worker.stdout.readline()
        if not answer:
            break
        if log is not None:
            seconds = time.monotonic() - begin
            log.write(json.dumps({"seconds": seconds, "answer": json.loads(answer[len(SENTINEL) :])}) + "\n")
            log.flush()
        target.write(answer)
        target.flush()
        line = source.readline()
        if not line:
            break
        worker.stdin.write(line)
        worker.stdin.flush()
    worker.stdin.close()
    return worker.wait()


def give_recorded(rows: list[dict[str, Any]], source: BinaryIO, target: BinaryIO) -> int:
    """Give recorded answers; a server that is asked for more blocks than were recorded begins again with the first."""
    blocks = rows[1:] or rows
    for row in itertools.chain(rows, itertools.cycle(blocks)):
        time.sleep(row["seconds"] if len(rows) > 1 else 0.0)
        target.write(SENTINEL + json.dumps(row["answer"]).encode() + b"\n")
        target.flush()
        if not source.readline():
            return 0
    return 0


def proxy() -> int:
    """Stand between edgeopt and its worker."""
    folder, mode = Path(os.environ[FOLDER]), os.environ[MODE]
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    first = source.readline()
    request = json.loads(first or b"{}")
    log = None
    if request.get("mode") in TIMED:
        name = name_of(request)
        if mode == "record":
            log = numbered(folder, name, ".claim").open("w", encoding="utf-8")
        else:
            file = numbered(folder, name, ".replayed")
            if file.exists():
                rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
                return give_recorded(rows, source, target)
            (folder / f"{file.stem}.missed").write_bytes(first)
    return forward(start_worker(first), source, target, log)


if MODE in os.environ and sys.orig_argv[-1].endswith("bench/worker.py"):
    os._exit(proxy())
