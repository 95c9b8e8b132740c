"""Which processor a program or library is built for."""

from __future__ import annotations

from pathlib import Path

from edgeopt.errors import DeviceError

MACHINES = {183: "aarch64", 40: "armv7l", 62: "x86_64", 3: "i686"}
"""From the number in an ELF file's header to what ``uname -m`` says."""


def machine_of(path: Path) -> str:
    """Return the processor that a program or library is built for, in the words of ``uname -m``.

    Raises:
        DeviceError: it is no ELF file.
    """
    with path.open("rb") as stream:
        head = stream.read(20)
    if head[:4] != b"\x7fELF":
        raise DeviceError(f"{path} is no program or library for Linux or Android (no ELF file).")
    number = int.from_bytes(head[18:20], "little")
    return MACHINES.get(number, f"ELF machine {number}")
