"""The program ``adb``: each call names the phone and has a timeout, for ``adb`` waits without end for one that left."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from edgeopt.device.process import last_line
from edgeopt.errors import DeviceError, DeviceLostError

CALL_SECONDS = 30.0

ADVICE = (
    ("unauthorized", "Unlock it and confirm the question about USB debugging on its screen"),
    ("offline", "Unplug it, plug it in again, and see what `adb devices` says"),
    ("not found", "Connect it, switch on USB debugging, and see what `adb devices` says"),
    ("no devices", "Connect a phone, switch on USB debugging, and see what `adb devices` says"),
    ("more than one", "Name one by its serial number; `adb devices` lists them"),
    ("No space left", "Free some space there and run the same command again"),
)


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
        """Return the words that name the phone."""
        return ["adb", *(("-s", self._serial) if self._serial else ())]

    def call(self, seconds: float, *words: str, check: bool = True) -> str:
        """Run one call to its end and return what it wrote.

        Raises:
            DeviceLostError: it failed, or took too long.
            DeviceError: there is no ``adb`` here.
        """
        try:
            done = subprocess.run(
                [*self.command(), *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
            )
        except FileNotFoundError as error:
            raise DeviceError(
                f"{self.uri}: there is no program `adb` here. Install Android's platform tools (adb)."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise DeviceLostError(
                f"{self.uri}: adb did not answer within {seconds:.0f} s. Is the phone connected?"
            ) from error
        wrote, errors = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
        if check and done.returncode:
            told = [line for line in (wrote + errors).splitlines() if "error" in line or "fail" in line]
            said = last_line("\n".join(told) or errors or wrote)  # `adb push` ends with a summary whatever came of it
            advice = next((advice for words, advice in ADVICE if words in said), "See what `adb devices` says")
            raise DeviceLostError(f"{self.uri}: adb failed: {said}. {advice}.")
        return wrote

    @contextmanager
    def reversed(self, port: int) -> Iterator[None]:
        """Let the phone reach a port of this machine as its own, for a block."""
        self.call(CALL_SECONDS, "reverse", f"tcp:{port}", f"tcp:{port}")
        try:
            yield
        finally:
            self.call(CALL_SECONDS, "reverse", "--remove", f"tcp:{port}", check=False)

    def open_page(self, address: str) -> None:
        """Open a page in the phone's browser; one that is locked shows it later, or the user opens it."""
        self.call(
            CALL_SECONDS, "shell", f"am start -a android.intent.action.VIEW -d '{address}' >/dev/null", check=False
        )
