"""OpenSSH's messages when it fails, and what to do about them. They are in English in every locale."""

from __future__ import annotations

from typing import NamedTuple

from edgeopt.errors import DeviceError, DeviceLostError, last_line


class Cause(NamedTuple):
    """One way in which a connection fails."""

    words: str
    """A part of the message that OpenSSH writes to stderr."""
    meaning: str
    advice: str
    """``{login}`` is the command that connects by hand, ``{host}`` the name in ``known_hosts``."""
    is_transient: bool
    """Whether it may pass by itself: a device that restarts, a network that comes back."""


CAUSES = (
    Cause(
        "HOST IDENTIFICATION HAS CHANGED",
        "its host key differs from the one in known_hosts: the device was set up again, or another machine answers",
        "If you know why, forget the old key with `ssh-keygen -R '{host}'`, connect once by hand with `{login}` and "
        "compare the fingerprint",
        is_transient=False,
    ),
    Cause(
        "Host key verification failed",
        "its host key is not known yet, and edgeopt never accepts a key by itself",
        "Connect once by hand with `{login}` and compare the fingerprint",
        is_transient=False,
    ),
    Cause(
        "Permission denied",
        "the login was refused",
        "edgeopt only uses keys and never asks for a password: `{login}` must work without one. `ssh-copy-id` copies "
        "your key there, `ssh-add` unlocks a key that has a passphrase",
        is_transient=False,
    ),
    Cause(
        "Too many authentication failures",
        "the login was refused after too many keys",
        "Name the right one for this host in ~/.ssh/config: `IdentityFile` and `IdentitiesOnly yes`",
        is_transient=False,
    ),
    Cause(
        "Could not resolve",
        "there is no host with that name",
        "Check the name, or give its address",
        is_transient=False,
    ),
    Cause(
        "Connection refused",
        "nothing listens there",
        "Check the port, and that sshd is running there",
        is_transient=True,
    ),
    Cause("timed out", "it does not answer", "Check that it is on, and on this network", is_transient=True),
    Cause("No route to host", "it cannot be reached", "Check that it is on, and on this network", is_transient=True),
    Cause("Network is unreachable", "it cannot be reached", "Check this machine's network", is_transient=True),
    Cause(
        "Connection reset",
        "it closed the connection",
        "Check that it is not starting or shutting down",
        is_transient=True,
    ),
    Cause(
        "onnection closed",
        "it closed the connection",
        "Check that it is not starting or shutting down",
        is_transient=True,
    ),
)


def explain_connection(uri: str, login: str, host: str, errors: str) -> DeviceError:
    """Return the error for a connection that was not made; a ``DeviceLostError`` if trying again may help.

    Args:
        uri: How the user names the device.
        login: The command that connects by hand.
        host: The host's name in ``known_hosts``.
        errors: OpenSSH's stderr.
    """
    for cause in CAUSES:
        if cause.words in errors:
            advice = cause.advice.format(login=login, host=host)
            kind = DeviceLostError if cause.is_transient else DeviceError
            return kind(f"{uri}: {cause.meaning} ({last_line(errors)}). {advice}.")
    line = last_line(errors) or "ssh gave no reason"
    return DeviceError(f"{uri}: no connection: {line}. Connect by hand with `{login}` to see why.")


def explain_lost_connection(uri: str, errors: str) -> DeviceLostError:
    """Return the error for a connection that broke."""
    line = last_line(errors)
    return DeviceLostError(
        f"{uri}: the connection was lost{f' ({line})' if line else ''}. Check that the device is on, and on "
        "this network."
    )
