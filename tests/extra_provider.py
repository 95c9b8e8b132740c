"""An environment whose onnxruntime has a second execution provider, which computes something else."""

import sys
from pathlib import Path

SPOILING = "SpoilingExecutionProvider"

SCRIPT = """
import importlib.util, sys
import onnxruntime

NAME = "SpoilingExecutionProvider"
Right = onnxruntime.InferenceSession

class Session(Right):
    def __init__(self, model, options=None, providers=(), **more):
        self.spoils = NAME in providers
        if self.spoils and REFUSES:
            raise RuntimeError("this provider has no MatMul")
        super().__init__(model, options, providers=["CPUExecutionProvider"], **more)

    def run(self, names, feed, *more):
        if self.spoils:
            feed = {name: array * array.dtype.type(FACTOR) for name, array in feed.items()}
        return super().run(names, feed, *more)

onnxruntime.InferenceSession = Session
onnxruntime.get_available_providers = lambda: [NAME, "CPUExecutionProvider"]
spec = importlib.util.spec_from_file_location("worker", sys.argv[1])
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
worker.main()
"""


def a_python_with_another_provider(folder: Path, factor: float, *, refuses: bool = False) -> str:
    """Return the URI of an environment whose second provider multiplies every input by ``factor``, or runs nothing."""
    (folder / "another.py").write_text(SCRIPT.replace("FACTOR", str(factor)).replace("REFUSES", str(refuses)))
    program = folder / "another-python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/another.py" "$@"\n')
    program.chmod(0o755)
    return f"local:?python={program}"
