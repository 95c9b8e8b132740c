"""Arrays for the native runner and the browser: ``.npz`` files to records, and back.

A record is a line ``BATCH DTYPE NDIM DIM... BYTES NAME``, then the bytes, little-endian and in C order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_records(source: Path, target: Path) -> None:
    """Write the arrays of a ``.npz`` as records; its keys are ``INDEX/NAME`` (or ``NAME`` for the first batch)."""
    import numpy as np

    with np.load(source, allow_pickle=False) as archive, target.open("wb") as stream:
        keys = [(key.partition("/"), key) for key in archive.files]
        named = [(int(head), name, key) if head.isdigit() and name else (0, key, key) for (head, _, name), key in keys]
        for batch, name, key in sorted(named, key=lambda entry: entry[0]):
            array = archive[key]
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            dims = "".join(f" {size}" for size in array.shape)
            stream.write(f"{batch} {array.dtype.name} {array.ndim}{dims} {array.nbytes} {name}\n".encode())
            stream.write(little.tobytes())


def read_records(source: Path, target: Path) -> None:
    """Write records as a ``.npz`` whose keys are ``INDEX/NAME``.

    Raises:
        ValueError: the file ends in the middle of a record.
    """
    import numpy as np

    arrays: dict[str, Any] = {}
    with source.open("rb") as stream:
        while line := stream.readline():
            batch, dtype, ndim, rest = line.decode().rstrip("\n").split(" ", 3)
            *dims, size, name = rest.split(" ", int(ndim) + 1)
            data = stream.read(int(size))
            array = np.frombuffer(data, dtype=np.dtype(dtype).newbyteorder("<"))
            arrays[f"{batch}/{name}"] = array.reshape([int(dim) for dim in dims])
    part = target.with_name(f"{target.name}.part.npz")  # savez adds a missing suffix
    np.savez(part, **arrays)
    part.replace(target)
