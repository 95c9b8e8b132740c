"""The processor that a program or library is built for, read from its ELF header."""

from __future__ import annotations

from pathlib import Path

from edgeopt.errors import DeviceError

MACHINES = {183: "aarch64", 40: "armv7l", 62: "x86_64", 3: "i686"}
"""The number in an ELF header to the name that ``uname -m`` prints."""


def read_machine(path: Path) -> str:
    """Return the processor that a program or library is built for, as ``uname -m`` names it.

    Raises:
        DeviceError: it is not an ELF file.
    """
    with path.open("rb") as stream:
        header = stream.read(20)
    if header[:4] != b"\x7fELF":
        raise DeviceError(f"{path} is not a program or library for Linux or Android (not an ELF file).")
    number = int.from_bytes(header[18:20], "little")
    return MACHINES.get(number, f"ELF machine {number}")
