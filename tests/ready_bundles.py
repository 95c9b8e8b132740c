"""Bundles of the trained networks of ready tasks, in float32, with files of their own test data."""

from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
from app_bundles import BOX_MAPS
from builders import a_choice
from tiny_bundles import AN_ORIGIN, a_golden

from edgeopt.bundle.box_answers import find_box_answers
from edgeopt.bundle.golden import find_answers
from edgeopt.bundle.raw_inputs import make_raw, make_resized, pixels_of
from edgeopt.bundle.write import write_bundle
from edgeopt.errors import DataError
from edgeopt.export.to_onnx import export
from edgeopt.records.preprocessing import ImagePreprocessing
from edgeopt.task import load_task

GOLDEN_SAMPLES = 4


def write_ready_bundle(folder: Path, name: str) -> Path:
    """Write the bundle of a ready task; skip the test if its data or its trained network are not there."""
    try:
        task = load_task(name)
        model, (examples,) = task.model, task.example_inputs
    except DataError as error:
        pytest.skip(f"EDGEOPT_DATA does not have what {name} needs: {error}")
    detector = task.task if getattr(task.task, "reads_maps", False) else None
    names = {"input_names": ("x",), "output_names": ("y", "s") if detector else ("y",)}
    export(model, (examples[:GOLDEN_SAMPLES],), folder / "m.onnx", max_opset=20, max_ir=9, **names)
    raw = make_raw("x", examples[:GOLDEN_SAMPLES].numpy(), task.preprocessing)
    found = onnxruntime.InferenceSession(str(folder / "m.onnx")).run(None, {"x": raw.values})
    outputs = dict(zip(names["output_names"], found, strict=True))
    tolerances = {name: 1e-3 * float(np.abs(output).max()) for name, output in outputs.items()}
    maps = msgspec.structs.replace(BOX_MAPS, stride=detector.stride) if detector else None
    if maps:
        answers = find_box_answers(maps, outputs, tolerances, task.labels)
    else:
        answers = find_answers("y", outputs["y"], 1, task.labels, tolerances["y"])
    is_image = isinstance(task.preprocessing, ImagePreprocessing)
    images = pixels_of("x", raw.values, task.preprocessing) if is_image else ()
    golden = a_golden(
        {"x": raw.values}, outputs, raw={"x": raw}, answers=answers,
        resized={"x": make_resized(images, task.preprocessing)} if is_image else {},
    )  # fmt: skip
    origin = msgspec.structs.replace(
        AN_ORIGIN, labels=task.labels, input_preprocessing={"x": task.preprocessing},
        boxes=maps, class_axes={} if maps else {"y": 1},
    )  # fmt: skip
    write_bundle(folder / "out", a_choice(), model=folder / "m.onnx", golden=golden, origin=origin)
    return folder / "out"
