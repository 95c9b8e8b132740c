"""What a bridge and the nodes of a cluster have to know about a build."""

from __future__ import annotations

from edgeopt.records.base import Record

PASSED_VARIABLES = ("PYTHONPATH", "EDGEOPT_DATA")
"""Environment variables that a training gets; ``PYTHONPATH`` only if its node has the task's code or needs none."""


class NodeSettings(Record, frozen=True, kw_only=True):
    """What a node has to know."""

    task: str
    """As the user named it."""
    code: str | None
    """``TaskCode.file``; None if the task comes with edgeopt, is installed or lies in the workspace."""
    code_root: str | None
    """``TaskCode.root``."""
    code_sha256: str | None
    """Of ``hash_code``."""
    code_is_sent: bool = False
    """Whether a node that lacks the code has a copy."""
    folder: str
    """Where the build was started."""
    workspace: str
    """As the build names it, and as its jobs do."""
    mark: str
    """An absolute path in a folder of the workspace, of a file with a name of its own: a node that sees it sees the
    workspace."""
    environment: dict[str, str]
    """Those of ``PASSED_VARIABLES`` that are set."""


class BridgeSettings(Record, frozen=True, kw_only=True):
    """What a bridge has to know."""

    address: str
    task: str
    workspace: str
    mark: str
    """As in ``NodeSettings``."""
    gpu: bool = False
    """Whether each training asks for a GPU; otherwise it asks for as many cores as it has threads."""
    sends_code: bool = False
    """Whether some node lacks the task's own code."""
