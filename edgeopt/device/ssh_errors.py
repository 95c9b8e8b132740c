"""What OpenSSH says when it fails, and what to do about it. It speaks English alone, in any locale."""

from __future__ import annotations

from typing import NamedTuple

from edgeopt.device.process import last_line
from edgeopt.errors import DeviceError, DeviceLostError


class Cause(NamedTuple):
    """One way to fail."""

    words: str
    """In what OpenSSH writes to stderr."""
    meaning: str
    advice: str
    """``{login}`` stands for the command that connects by hand, ``{host}`` for the name in ``known_hosts``."""
    passes: bool
    """Whether it may pass by itself: a device that starts anew, a network that comes back."""


CAUSES = (
    Cause(
        "HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one in known_hosts: either the device was set up anew, or another machine answers",
        "If you know why, forget the old key with `ssh-keygen -R '{host}'`, connect once by hand with `{login}` and "
        "compare the fingerprint",
        passes=False,
    ),
    Cause(
        "Host key verification failed",
        "its host key is not known yet, and edgeopt never accepts one by itself",
        "Connect once by hand with `{login}` and compare the fingerprint",
        passes=False,
    ),
    Cause(
        "Permission denied",
        "the login was refused",
        "edgeopt uses keys alone and asks for no password: `{login}` has to work without one. `ssh-copy-id` brings "
        "your key there, `ssh-add` opens one that has a passphrase",
        passes=False,
    ),
    Cause(
        "Too many authentication failures",
        "the login was refused after too many keys",
        "Name the right one for this host in ~/.ssh/config: `IdentityFile` and `IdentitiesOnly yes`",
        passes=False,
    ),
    Cause("Could not resolve", "there is no host of that name", "Check the name, or give its address", passes=False),
    Cause("Connection refused", "nothing listens there", "Check the port, and that sshd runs on it", passes=True),
    Cause("timed out", "it does not answer", "Check that it is on, and on this network", passes=True),
    Cause("No route to host", "it cannot be reached", "Check that it is on, and on this network", passes=True),
    Cause("Network is unreachable", "it cannot be reached", "Check this machine's network", passes=True),
    Cause(
        "Connection reset", "it closed the connection", "Check that it is not starting or shutting down", passes=True
    ),
    Cause(
        "onnection closed", "it closed the connection", "Check that it is not starting or shutting down", passes=True
    ),
)


def explain_connection(uri: str, login: str, host: str, errors: str) -> DeviceError:
    """Return the error for a connection that was not made; a ``DeviceLostError`` where trying again may help.

    Args:
        uri: How the user names the device.
        login: The command that connects by hand.
        host: The host's name in ``known_hosts``.
        errors: What OpenSSH wrote to stderr.
    """
    for cause in CAUSES:
        if cause.words in errors:
            advice = cause.advice.format(login=login, host=host)
            kind = DeviceLostError if cause.passes else DeviceError
            return kind(f"{uri}: {cause.meaning} ({last_line(errors)}). {advice}.")
    said = last_line(errors) or "it said nothing"
    return DeviceError(f"{uri}: no connection: {said}. Connect by hand with `{login}` to see why.")


def ssh_lost(uri: str, errors: str) -> DeviceLostError:
    """Return the error for a connection that broke."""
    said = last_line(errors)
    return DeviceLostError(
        f"{uri}: the connection was lost in the middle of work{f' ({said})' if said else ''}. Check that the device is "
        f"on and on this network."
    )
