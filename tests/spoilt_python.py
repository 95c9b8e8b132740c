"""A device that computes something else than this machine."""

import sys
from pathlib import Path

SPOILT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("worker", sys.argv[1])
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
right = worker.iterate_batches
worker.iterate_batches = lambda path: ({name: array * FACTOR for name, array in batch.items()} for batch in right(path))
worker.main()
"""


def a_spoilt_python(folder: Path, factor: float) -> str:
    """Return the URI of an environment whose workers multiply every input by ``factor``."""
    (folder / "spoilt.py").write_text(SPOILT.replace("FACTOR", str(factor)))
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/spoilt.py" "$@"\n')
    program.chmod(0o755)
    return f"local:?python={program}"
