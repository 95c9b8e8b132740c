"""A child process's side of its pipes: jobs arrive as JSON lines on stdin, answers go out on stdout."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import BinaryIO

from edgeopt.pipeline.processes import keep_from_children, queue_lines, take_stdin
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.codec import to_json

Answer = Callable[[protocol.TorchAnswer], None]
"""Sends an answer to the parent."""


def serve_parent() -> tuple[queue.Queue[bytes], Answer]:
    """Take over stdin and stdout: whatever else this process prints goes to stderr, and it ends when stdin ends.

    Returns:
        The queue of the lines that arrive, and what sends an answer.
    """
    requests, channel = take_stdin(), os.dup(1)
    keep_from_children(channel)
    answers: BinaryIO = os.fdopen(channel, "wb", buffering=0)
    os.dup2(2, 1)

    def answer(value: protocol.TorchAnswer) -> None:
        line = to_json(value) + b"\n"
        while line:
            line = line[answers.write(line) :]

    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=queue_lines, args=(requests, lines), daemon=True).start()
    return lines, answer
