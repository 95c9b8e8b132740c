"""``README.md`` of a bundle: a model card in the form of the field (Mitchell et al., 2019; Hugging Face's header).

A document and a manifest go in, Markdown comes out: how to use the file, what was measured, how it was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from edgeopt.bundle.manifest import Manifest, TensorInfo
from edgeopt.records.preprocessing import ImagePreprocessing, SoundPreprocessing
from edgeopt.report import noise, sentences, words
from edgeopt.report.document import Document
from edgeopt.report.ort_file import ort_text
from edgeopt.report.proof import build_proof

_SHOWN_LABELS = 20
_IMAGE_DIMENSIONS = 4
"""Of an output with a class for each pixel: samples, classes, height and width."""


def render_card(document: Document, manifest: Manifest) -> str:
    """Return the model card of a bundle that has a model."""
    lines = [*_header(manifest), "", f"# {manifest.task} for {manifest.target}", "", sentences.headline(document), ""]
    lines += [f"**Warning:** {warning}\n" for warning in document.warnings]
    for section in (
        _use(manifest),
        _inputs(manifest),
        _outputs(manifest),
        _proof(document),
        _origin(document, manifest),
    ):
        lines += [*section, ""]
    return "\n".join(lines)


def _header(manifest: Manifest) -> Iterator[str]:
    """Yield the fields that model hubs read."""
    yield "---"
    yield "library_name: onnx"
    kinds = {type(info.preprocessing) for info in manifest.inputs}
    if manifest.boxes is not None and ImagePreprocessing in kinds:
        yield "pipeline_tag: object-detection"
    elif manifest.labels and manifest.answers and ImagePreprocessing in kinds:
        yield "pipeline_tag: image-classification"
    elif manifest.labels and manifest.answers and SoundPreprocessing in kinds:
        yield "pipeline_tag: audio-classification"
    yield "tags: [onnx, onnxruntime, edgeopt]"
    yield "---"


def _use(manifest: Manifest) -> Iterator[str]:
    yield "## Use"
    yield ""
    yield "```bash"
    yield "pip install numpy onnxruntime pillow"
    yield "python samples/python/run.py           # checks that this machine computes what the build computed"
    if _answers_for_files(manifest):
        yield "python samples/python/run.py FILE      # the answer for an image or a .wav"
        if any(info.class_axis is not None and len(info.shape) == _IMAGE_DIMENSIONS for info in manifest.outputs):
            yield "python samples/python/run.py FILE MAP.png     # and the class of each pixel, as a grey image"
        if manifest.boxes is not None:
            yield "python samples/python/run.py FILE BOXES.png   # and the image with its boxes drawn"
    yield "```"
    yield ""
    yield "The other folders of `samples/` do the same: `cpp`, `node` and `browser` as they are, `android` (Kotlin) and"
    yield "`ios` (Swift) as source for an app. All facts are in `manifest.json`. The code of an app is right if it"
    yield "makes the arrays of `golden/`, within their tolerances, of its files."
    if manifest.ort is not None:
        yield ""
        yield f"For a reduced ONNX Runtime: {ort_text(manifest.ort)}."
    if manifest.golden:
        yield ""
        yield "The files of `golden/` are samples of the data: leave them out of an app whose users may not see them."


def _answers_for_files(manifest: Manifest) -> bool:
    """Tell whether the samples can make the inputs from one file: besides it, there are only states of zeros."""
    states = [info for info in manifest.inputs if info.next_value is not None]
    others = [info for info in manifest.inputs if info.next_value is None]
    if len(others) != 1 or others[0].preprocessing is None or not all(info.begins_with_zeros for info in states):
        return False
    how = others[0].preprocessing
    return not states or isinstance(how, ImagePreprocessing) or how.samples is not None


def _inputs(manifest: Manifest) -> Iterator[str]:
    yield "## Inputs"
    yield ""
    for info in manifest.inputs:
        yield f"- {_tensor_text(info)}"
        if info.preprocessing is not None:
            yield f"  - made from: {info.preprocessing.text}"
        if info.next_value is not None:
            first = "zeros" if info.begins_with_zeros else "a value of the task's"
            yield f"  - a state: {first} at first, then the output `{info.next_value}` of the chunk before"
        if info.value_range is not None:
            yield "  - values of the samples that judged the build: {:.5g} to {:.5g}".format(*info.value_range)
    for size in manifest.dynamic:
        largest = "any" if size.max_size is None else f"{size.max_size:,}"
        yield f"- `{size.name}` may be {size.min_size:,} to {largest}"
    if manifest.preprocessing and not any(info.preprocessing for info in manifest.inputs):
        yield f"- made from: {manifest.preprocessing}"


def _outputs(manifest: Manifest) -> Iterator[str]:
    yield "## Outputs"
    yield ""
    for info in manifest.outputs:
        yield f"- {_tensor_text(info)}"
    if manifest.postprocessing:
        yield f"- {manifest.postprocessing}"
    if manifest.labels:
        shown = ", ".join(manifest.labels[:_SHOWN_LABELS])
        rest = len(manifest.labels) - _SHOWN_LABELS
        yield f"- classes, in order: {shown}{f' and {rest:,} more' if rest > 0 else ''}"


def _tensor_text(info: TensorInfo) -> str:
    return f"`{info.name}`: {info.dtype} {json.dumps(info.shape).replace(chr(34), '')}"


def _proof(document: Document) -> Iterator[str]:
    assert document.winner is not None
    yield "## Measured"
    yield ""
    yield "| | this file | trained network | limit |"
    yield "|---|---|---|---|"
    before = {(row.limit, row.label): row for row in build_proof(document.baseline, document.budget)}
    for row in build_proof(document.winner, document.budget):
        base = before.get((row.limit, row.label))
        cells = (row.label, row.found_text, base.found_text if base else "", row.allowed_text)
        yield f"| {' | '.join(cell.replace(words.NBSP, ' ') for cell in cells)} |"
    yield ""
    yield sentences.device(document)
    if notes := [*noise.noise_notes(document), *noise.timing_notes(noise.compared_trials(document))]:
        yield ""
        yield " ".join(notes)


def _origin(document: Document, manifest: Manifest) -> Iterator[str]:
    assert document.winner is not None
    winner = document.winner
    yield "## How it was made"
    yield ""
    parameters = winner.parameters, document.baseline.parameters
    yield f"- {words.recipe_text(winner.recipe, *parameters, weight_types=winner.weight_types)}"
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield f"- `{manifest.command}`, with {versions}"
    yield f"- Licence of model and data: {manifest.licence or 'not stated; ask whoever trained the network'}"
    yield "- `sbom.json` lists the model and the packages that made it, for tools that read CycloneDX"
    yield "- `report.html` shows every file that was tried; `choice.json` is the same as data"
