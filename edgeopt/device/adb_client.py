"""Calls of the program ``adb``: each names the phone and has a timeout, as ``adb`` waits forever for a lost phone."""

from __future__ import annotations

import logging
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from edgeopt.errors import DeviceError, DeviceLostError, last_line

CALL_SECONDS = 30.0

ADB_ADVICE = (
    ("unauthorized", "Unlock it and confirm USB debugging on its screen"),
    ("offline", "Unplug it, plug it in again, and check `adb devices`"),
    ("not found", "Connect it, turn on USB debugging, and check `adb devices`"),
    ("no devices", "Connect a phone, turn on USB debugging, and check `adb devices`"),
    ("more than one", "Name one by its serial number; `adb devices` lists them"),
    ("No space left", "Free some space there and run the same command again"),
)

_logger = logging.getLogger(__name__)


class Adb:
    """Calls to one phone.

    Args:
        uri: How the user names the device; errors begin with it.
        serial: As ``adb devices`` lists it; empty for the only one.
    """

    def __init__(self, uri: str, serial: str) -> None:
        self.uri = uri
        self._serial = serial

    def command(self) -> list[str]:
        """Return the beginning of a command line: ``adb`` and the phone's serial number."""
        return ["adb", *(("-s", self._serial) if self._serial else ())]

    def call(self, seconds: float, *words: str, check: bool = True, secret: str = "") -> str:
        """Run one call to its end and return its stdout.

        Args:
            seconds: Timeout.
            words: Arguments of ``adb``.
            check: Whether to raise if it fails.
            secret: Left out of the debug log.

        Raises:
            DeviceLostError: it failed, or took too long.
            DeviceError: ``adb`` is not installed here.
        """
        command, begin = [*self.command(), *words], time.monotonic()
        log_as = shlex.join(command)
        log_as = log_as.replace(secret, "***") if secret else log_as
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
        except FileNotFoundError as error:
            raise DeviceError(
                f"{self.uri}: `adb` is not installed here. Install Android's platform tools (adb)."
            ) from error
        except subprocess.TimeoutExpired as error:
            _logger.debug("%s: no end within %.0f s", log_as, seconds)
            raise DeviceLostError(
                f"{self.uri}: adb did not answer within {seconds:.0f} s. Is the phone connected?"
            ) from error
        _logger.debug("%s: exit code %d after %.3f s", log_as, done.returncode, time.monotonic() - begin)
        output, errors = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
        if check and done.returncode:
            reasons = [line for line in (output + errors).splitlines() if "error" in line or "fail" in line]
            line = last_line("\n".join(reasons) or errors or output)  # `adb push` ends with a summary in any case
            advice = next((advice for words, advice in ADB_ADVICE if words in line), "Check `adb devices`")
            raise DeviceLostError(f"{self.uri}: adb failed: {line}. {advice}.")
        return output

    @contextmanager
    def reverse_port(self, port: int) -> Iterator[None]:
        """Let the phone reach a port of this machine on its own localhost, until the block ends."""
        self.call(CALL_SECONDS, "reverse", f"tcp:{port}", f"tcp:{port}")
        try:
            yield
        finally:
            self.call(CALL_SECONDS, "reverse", "--remove", f"tcp:{port}", check=False)

    def open_page(self, address: str) -> None:
        """Open a page in the phone's browser; a locked phone shows it later, or the user opens it."""
        script = f"am start -a android.intent.action.VIEW -d '{address}' >/dev/null"
        self.call(CALL_SECONDS, "shell", script, check=False, secret=address)
