"""From what ``--data`` names to ``GivenSamples``: a file of rows, a folder of samples, or a Python function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeopt.errors import InputError
from edgeopt.records.preprocessing import DataOptions
from edgeopt.tasks.onnx_data.arrays import load_arrays
from edgeopt.tasks.onnx_data.folders import load_folder
from edgeopt.tasks.onnx_data.functions import is_function, load_function
from edgeopt.tasks.onnx_data.samples import GivenSamples
from edgeopt.tasks.onnx_data.specs import InputSpec


def load_samples(
    source: str, inputs: Sequence[InputSpec], options: DataOptions | None = None, *, judged: bool = True
) -> GivenSamples:
    """Read data for a given model.

    Args:
        source: A ``.npz`` or ``.npy``, a folder, or ``file.py:name``.
        inputs: Of the model.
        options: How images and sounds are prepared.
        judged: Whether outputs are scored; otherwise labels and arrays that are not used are ignored.

    Raises:
        DataError: the data cannot be read or do not fit.
        InputError: an option does not fit the model or the data.
    """
    options = options or DataOptions()
    if not is_function(source) and Path(source).is_dir():
        return load_folder(Path(source), inputs, options, judged=judged)
    if options.for_images:
        raise InputError(f"{', '.join(options.for_images)} goes with a folder of images; {source} isn't a folder.")
    if is_function(source):
        return load_function(source, inputs, judged=judged)
    return load_arrays(Path(source), inputs, judged=judged)
