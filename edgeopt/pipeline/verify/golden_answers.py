"""What outputs say about the golden inputs, compared with what they said in the build: classes, and boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgeopt.bundle.box_answers import BoxMaps, FoundBox, count_wrong_boxes
from edgeopt.bundle.golden import Array, GoldenAnswer
from edgeopt.bundle.manifest import Manifest
from edgeopt.pipeline.verify.findings import CheckFinding
from edgeopt.tasks.peaks import decode_peaks


def compare_golden_answers(manifest: Manifest, outputs: Mapping[str, Array]) -> Iterator[CheckFinding]:
    """Compare the answers of the model for the golden inputs with those of the build."""
    classes = [answer for answer in manifest.answers if answer.box is None]
    boxes = [answer for answer in manifest.answers if answer.box is not None]
    if classes:
        wrong = sum(not _names(outputs.get(answer.output), answer) for answer in classes)
        text = f"{len(classes)} golden inputs have the classes of the build"
        if wrong:
            text = f"{wrong} of {len(classes)} golden inputs have another class than when it was built"
        yield _finding(text, is_wrong=wrong > 0)
    if boxes and manifest.boxes is not None:
        yield _compare_boxes(manifest.boxes, boxes, outputs)


def _finding(text: str, *, is_wrong: bool) -> CheckFinding:
    return CheckFinding(kind="golden", name="answers", status="missed" if is_wrong else "passed", text=text)


def _names(output: Array | None, answer: GoldenAnswer) -> bool:
    """Tell whether an output, if it has the form, names the class."""
    if output is None or output.ndim != 2 or answer.sample >= len(output):
        return False
    return int(np.argmax(output[answer.sample])) == answer.class_index


def _compare_boxes(maps: BoxMaps, answers: Sequence[GoldenAnswer], outputs: Mapping[str, Array]) -> CheckFinding:
    found = _read_boxes(maps, outputs)
    missing, further = 0, 0
    for sample in sorted({answer.sample for answer in answers}):
        right = [answer for answer in answers if answer.sample == sample]
        counts = count_wrong_boxes(right, found[sample] if sample < len(found) else [])
        missing, further = missing + counts[0], further + counts[1]
    certain = sum(answer.box is not None and answer.box.is_certain for answer in answers)
    text = f"{certain} boxes of the golden inputs are those of the build"
    if missing or further:
        text = f"{missing} of {certain} boxes of the golden inputs are missing or off, and {further} are new"
    return _finding(text, is_wrong=missing + further > 0)


def _read_boxes(maps: BoxMaps, outputs: Mapping[str, Array]) -> list[list[FoundBox]]:
    """Return the boxes of each sample that an app shows; none if the outputs are no maps."""
    heatmap, sides = outputs.get(maps.heatmap), outputs.get(maps.sides)
    if heatmap is None or sides is None or heatmap.ndim != 4 or sides.shape != (len(heatmap), 4, *heatmap.shape[2:]):
        return []
    return [
        [
            FoundBox(int(label), float(score), corners.tolist())
            for label, score, corners in zip(one["labels"], one["scores"], one["boxes"], strict=True)
            if score >= maps.min_score
        ][: maps.max_boxes]
        for one in decode_peaks(heatmap.astype(np.float64), sides.astype(np.float64), maps.stride)
    ]
