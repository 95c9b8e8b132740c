"""Connecting to a Ray cluster, with a sentence for everything that goes wrong."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Mapping
from typing import Any

from edgeopt.errors import ConfigError

_CONNECT_SECONDS = 10.0
_DEFAULT_PORTS = {"ray://": 10001, "": 6379}
_ADDRESS = re.compile(r"(?P<scheme>ray://)?(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+)(:(?P<port>\d+))?")
_FORMS = "Give auto, ray://HOST:10001 or HOST:6379."
_MISMATCH = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
_AUTHENTICATION_HINT = (
    "If the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as its nodes have them."
)


def connect_to_ray(address: str, runtime_env: Mapping[str, Any]) -> Any:
    """Connect this process to a cluster, and return the ``ray`` module.

    Args:
        address: ``auto``, ``ray://HOST:PORT`` or ``HOST:PORT``.
        runtime_env: What Ray prepares on the nodes.

    Raises:
        ConfigError: the address is not one, nothing answers there, the versions differ, or Ray refuses.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    _check_reachable(address)
    import ray

    try:
        ray.init(
            address=address, runtime_env=dict(runtime_env) or None, log_to_driver=False, logging_level=logging.ERROR
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ImportError, SystemExit) as error:
        raise ConfigError(_explain(address, error)) from error
    return ray


def _check_reachable(address: str) -> None:
    """Check that something listens at an address: Ray itself waits for minutes."""
    if address == "auto":
        return
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise ConfigError(f"--ray {address}: this is not an address. {_FORMS}")
    host, port = found["host"].strip("[]"), int(found["port"] or _DEFAULT_PORTS[found["scheme"] or ""])
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--ray {address}: nothing answers at {host}, port {port} ({error}). Check that the cluster runs (`ray "
            "status` on its head) and that this machine reaches it."
        ) from error


def _explain(address: str, error: BaseException) -> str:
    """Return what went wrong, in a sentence or two."""
    text = " ".join(str(error).split())
    versions = _MISMATCH.findall(text)
    if len(versions) == 2:
        (ray, python), (own_ray, own_python) = versions
        return (
            f"--ray {address}: the cluster runs Ray {ray} on Python {python}, and this is Ray {own_ray} on Python "
            f"{own_python}. Both have to be the same: install the cluster's versions here."
        )
    if address == "auto" and "Could not find any running Ray instance" in text:
        return (
            "--ray auto: no Ray cluster runs on this machine. Start one with `ray start --head`, join one with `ray "
            "start --address HOST:6379`, or give its address: ray://HOST:10001."
        )
    reason = text.rstrip(".") if isinstance(error, Exception) and text else "it ended the connection"
    if isinstance(error, ImportError):
        return f"--ray {address}: Ray lacks a package here: {reason}. Install it with: pip install 'edgeopt[ray]'."
    hint = "" if address.startswith("ray://") else " This machine has to be a node of the cluster; if it isn't, " \
        "connect to ray://HOST:10001."  # fmt: skip
    return f"--ray {address}: Ray cannot connect: {reason}. {_AUTHENTICATION_HINT}{hint}"
