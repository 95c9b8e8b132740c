"""Sentences about the winner in ONNX Runtime's own format: a document goes in, one statement comes out."""

from __future__ import annotations

from edgeopt.records.choice import OrtFile
from edgeopt.records.profile import OrtPlatform
from edgeopt.report import words
from edgeopt.report.document import Document

_PLATFORMS: dict[OrtPlatform, str] = {
    "any": "any processor",
    "arm": "Arm processors",
    "amd64": "processors like the one that made it",
}


def ort_sentence(document: Document) -> str | None:
    """Name the file, its size, and what it is for; None if the bundle has none."""
    if document.ort is None:
        return None
    return f"For a reduced ONNX Runtime: {ort_text(document.ort)}. `edgeopt guide app` says how to build one."


def ort_text(ort: OrtFile) -> str:
    """Describe the file in a few words."""
    sizes = f"{words.size(ort.size_bytes)}, deflated {words.size(ort.download_bytes)}"
    weights = "with weights unpacked in each run, " if ort.weights == "stored" else ""
    return (
        f"{ort.file} ({sizes}; {weights}for {_PLATFORMS[ort.target_platform]}, with onnxruntime {ort.onnxruntime} or "
        f"newer) and {ort.operators_file}"
    )
