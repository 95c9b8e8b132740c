"""Mean average precision of detected boxes at an intersection over union of 0.5, as COCO defines it.

``faster-coco-eval`` matches boxes with objects and computes the score. Its matches, one row of numbers for each image,
are what an interval is computed from: drawing images again changes no match, only which boxes are ranked together.

A detection is a dict of arrays for each image: ``boxes`` (N, 4), left, top, right and bottom in pixels, ``labels``
(N,), from 0, and ``scores`` (N,). What should be found has no scores, but perhaps ``iscrowd`` (N,): a box with a crowd
need not be found, and a detection that overlaps it is not wrong.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import TaskError

MAX_DETECTIONS = 100
"""Of an image; those with the highest scores count, as with COCO."""
_MIN_IOU = 0.5
_RECALLS = np.linspace(0, 1, 101)
"""At which COCO reads the precision."""

_Floats = NDArray[np.float64]
Boxes = Mapping[str, Any]


def check_evaluator(source: str) -> None:
    """Raise TaskError if the library that matches boxes is not installed.

    Args:
        source: What needs it, for the error.
    """
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise TaskError(f"{source} is scored by faster-coco-eval, which is missing: pip install faster-coco-eval.")


def count_classes(truth: Sequence[Boxes]) -> int:
    """Return one more than the largest label; 0 without any."""
    return max((int(np.max(one["labels"])) + 1 for one in truth if np.size(one["labels"])), default=0)


def mean_average_precision(found: Sequence[Boxes], truth: Sequence[Boxes]) -> float:
    """Return the mean over classes of the average precision; 0 if there is nothing to find.

    Args:
        found: Detections of each image.
        truth: What should be found, in the same images. Classes without any box there do not count.
    """
    classes = count_classes(truth)
    if not classes:
        return 0.0
    precision = _evaluate(found, truth, classes).eval["precision"][0, :, :, 0, 0]  # -1 without anything to find
    known = precision[:, (precision > -1).all(0)]
    return float(known.mean()) if known.size else 0.0


def match_rows(found: Sequence[Boxes], truth: Sequence[Boxes]) -> _Floats:
    """Return the matches of each image, from which ``score_of_matches`` computes the score of any draw of images.

    Returns:
        Shape (images, classes + ``MAX_DETECTIONS``): for each class the number of boxes to find; then a number for each
        detection, ``2 * (rank * classes + label) + is_right``, the highest score first. Ranks are those of the scores
        over all images: 0 is the highest, and equal scores have equal ranks. Detections that do not count, because they
        overlap a crowd, are left out; the rest of the row is NaN.
    """
    classes = count_classes(truth)
    rows = np.full((len(truth), classes + MAX_DETECTIONS), np.nan)
    rows[:, :classes] = 0
    for row, one in zip(rows, truth, strict=True):
        labels = np.asarray(one["labels"], dtype=np.int64).reshape(-1)
        row[:classes] = np.bincount(labels[~_crowds(one)], minlength=classes)
    if not classes:
        return rows
    evaluation = _evaluate(found, truth, classes)
    matched = {int(pair.partition("_")[0]): int(pair.partition("_")[2]) for pair in evaluation.eval["matched"]}
    detections = list(evaluation.cocoDt.anns.values())  # of an image, the highest score first
    ranks = np.unique([-one["score"] for one in detections], return_inverse=True)[1]
    ends = np.full(len(truth), classes)
    for rank, detection in zip(ranks.tolist(), detections, strict=True):
        match = evaluation.cocoGt.anns.get(matched.get(detection["id"]))
        if match is None or not match["iscrowd"]:
            image = detection["image_id"] - 1
            rows[image, ends[image]] = 2 * (rank * classes + detection["category_id"] - 1) + (match is not None)
            ends[image] += 1
    return rows


def score_of_matches(rows: _Floats) -> float:
    """Return the mean average precision of images, from their rows of ``match_rows``.

    An image that was drawn twice is there twice.
    """
    classes = rows.shape[1] - MAX_DETECTIONS
    if not classes:
        return 0.0
    numbers = rows[:, classes:].reshape(-1)
    numbers = numbers[~np.isnan(numbers)].astype(np.int64)
    ranks = numbers // (2 * classes)
    if ranks.max(initial=0) < 2**16:
        ranks = ranks.astype(np.uint16)  # which numpy sorts ten times faster
    labels, right = np.divmod(numbers[np.argsort(ranks, kind="stable")] % (2 * classes), 2)
    averages = []
    for kind, total in enumerate(rows[:, :classes].sum(0)):
        if not total:
            continue
        hits = np.cumsum(right[labels == kind])
        precision = hits / np.arange(1, len(hits) + 1)
        precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # 0 if no recall is that high
        averages.append(precision[np.searchsorted(hits / total, _RECALLS)].mean())
    return float(np.mean(averages)) if averages else 0.0


def _crowds(truth: Boxes) -> NDArray[np.bool_]:
    given = truth.get("iscrowd")
    return np.asarray(np.zeros(np.size(truth["labels"])) if given is None else given).reshape(-1).astype(bool)


def _evaluate(found: Sequence[Boxes], truth: Sequence[Boxes], classes: int) -> Any:
    """Return the library's evaluation at one overlap, of boxes of any size."""
    from faster_coco_eval import COCO, COCOeval_faster

    wanted = [{**one, "labels": np.reshape(one["labels"], -1), "iscrowd": _crowds(one)} for one in truth]
    evaluation = COCOeval_faster(
        COCO(_data_set(wanted, classes)), COCO(_data_set([_best(one, classes) for one in found], classes)), "bbox",
        print_function=lambda *_: None,
    )  # fmt: skip
    parameters = evaluation.params
    parameters.iouThrs, parameters.recThrs, parameters.maxDets = np.array([_MIN_IOU]), _RECALLS, [MAX_DETECTIONS]
    parameters.areaRng, parameters.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _best(found: Boxes, classes: int) -> dict[str, NDArray[Any]]:
    """Return the detections of an image that count, the highest score first.

    Numbers that are not finite do not; a right end that is left of the left one makes an empty box.
    """
    scores = np.asarray(found["scores"], dtype=np.float64).reshape(-1)
    boxes = np.asarray(found["boxes"], dtype=np.float64).reshape(-1, 4)
    boxes = np.concatenate([boxes[:, :2], np.maximum(boxes[:, 2:], boxes[:, :2])], 1)
    labels = np.asarray(found["labels"]).reshape(-1).astype(np.int64)
    order = np.argsort(-scores, kind="stable")
    order = order[(np.isfinite(boxes).all(1) & np.isfinite(scores))[order]][:MAX_DETECTIONS]
    order = order[(labels[order] >= 0) & (labels[order] < classes)]  # other classes have nothing to find
    return {"scores": scores[order], "boxes": boxes[order], "labels": labels[order]}


def _data_set(images: Sequence[Boxes], classes: int) -> dict[str, list[dict[str, Any]]]:
    """Return boxes as COCO writes them; all numbers begin at 1."""
    annotations: list[dict[str, Any]] = []
    for image, one in enumerate(images, 1):
        extra = "scores" if "scores" in one else "iscrowd"
        boxes = np.asarray(one["boxes"], dtype=np.float64).reshape(-1, 4)
        for (left, top, right, bottom), label, value in zip(boxes, one["labels"], one[extra], strict=True):
            box = [float(left), float(top), float(right - left), float(bottom - top)]
            annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label) + 1, "bbox": box}
            annotation |= {"area": box[2] * box[3], "iscrowd": 0}
            annotation |= {"score": float(value)} if extra == "scores" else {"iscrowd": int(value)}
            annotations.append(annotation)
    return {
        "images": [{"id": image} for image in range(1, len(images) + 1)],
        "categories": [{"id": kind, "name": str(kind)} for kind in range(1, classes + 1)],
        "annotations": annotations,
    }
