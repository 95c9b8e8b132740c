"""Arrays for the native runner and the browser: batch files to records, and back.

A record is a line ``BATCH DTYPE NDIM DIM... BYTES NAME``, then the bytes, little-endian and in C order. A batch file is
one that ``edgeopt.bench.worker.write_batches`` wrote.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

_NAMES_ENTRY = "names.json"
"""As in ``edgeopt/bench/worker.py``."""


def write_records(source: Path, target: Path) -> None:
    """Write the arrays of a batch file as records, or those of another ``.npz`` as its only batch."""
    import numpy as np

    with np.load(source, allow_pickle=False) as archive, target.open("wb") as stream:
        if _NAMES_ENTRY in archive.files:
            names = json.loads(archive[_NAMES_ENTRY])
            parts = [key.partition("/") for key in archive.files if key != _NAMES_ENTRY]
            named = [(int(batch), names[int(number)], f"{batch}/{number}") for batch, _, number in parts]
        else:
            named = [(0, key, key) for key in archive.files]
        for batch, name, key in sorted(named, key=lambda entry: entry[0]):
            array = archive[key]
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            dims = "".join(f" {size}" for size in array.shape)
            stream.write(f"{batch} {array.dtype.name} {array.ndim}{dims} {array.nbytes} {name}\n".encode())
            stream.write(little.tobytes())


def read_records(source: Path, target: Path) -> None:
    """Write records as a batch file.

    Raises:
        ValueError: the file ends in the middle of a record.
    """
    import numpy as np

    arrays: dict[str, Any] = {}
    numbers: dict[str, int] = {}
    with source.open("rb") as stream:
        while line := stream.readline():
            batch, dtype, ndim, rest = line.decode().rstrip("\n").split(" ", 3)
            *dims, size, name = rest.split(" ", int(ndim) + 1)
            data = stream.read(int(size))
            array = np.frombuffer(data, dtype=np.dtype(dtype).newbyteorder("<"))
            number = numbers.setdefault(name, len(numbers))
            arrays[f"{batch}/{number}"] = array.reshape([int(dim) for dim in dims])
    part = target.with_name(f"{target.name}.part.npz")  # savez adds a missing suffix
    np.savez(part, **arrays)
    with zipfile.ZipFile(part, "a") as archive:
        archive.writestr(_NAMES_ENTRY, json.dumps(list(numbers)))
    part.replace(target)
