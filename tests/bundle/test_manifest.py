"""``manifest.json``: a golden file fixes its format, and changed files are found."""

import json
from pathlib import Path

import pytest

from edgeopt.bundle.manifest import find_changed_files, read_manifest
from edgeopt.errors import DataError

GOLDEN = Path(__file__).parent / "golden" / "manifest.json"
HASHED_BY_CONTENT = {"report.html", "README.md", "sbom.json"}
"""Their bytes change with every improvement of the text or another version, which does not change the format."""


def without_page_hash(document):
    for name in [*HASHED_BY_CONTENT, *(name for name in document["files"] if name.startswith("samples/"))]:
        document["files"][name] = {"sha256": "", "size_bytes": 0}
    return document


def rounded(value):
    """Round floats to nine digits, because the last ones may differ between versions of numpy."""
    match value:
        case dict():
            return {key: rounded(item) for key, item in value.items()}
        case list():
            return [rounded(item) for item in value]
        case float():
            return float(f"{value:.9g}")
        case _:
            return value


def test_the_format_is_that_of_the_golden_file(tmp_path, write):
    write(tmp_path / "out")
    found = without_page_hash(json.loads((tmp_path / "out" / "manifest.json").read_bytes()))
    found["files"]["choice.json"] = {"sha256": "", "size_bytes": 0}  # it has a golden file of its own
    if not GOLDEN.exists():  # after a deliberate change: remove it, run this once, read the difference
        GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
    assert rounded(found) == rounded(json.loads(GOLDEN.read_bytes()))
    assert list(found) == list(json.loads(GOLDEN.read_bytes()))


def test_inputs_and_outputs_are_those_of_the_file(tmp_path, write):
    write(tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert [(tensor.name, tensor.shape, tensor.dtype) for tensor in (*manifest.inputs, *manifest.outputs)] == [
        ("images", ("batch", 12), "float32"),
        ("logits", ("batch", 3), "float32"),
        ("label", ("batch",), "int64"),
    ]


def test_the_proof_is_in_it(tmp_path, write):
    write(tmp_path / "out")
    proof = read_manifest(tmp_path / "out").proof
    assert [(row.limit, row.kept) for row in proof] == [
        ("latency", True),
        ("memory", True),
        ("size", True),
        ("score", True),
    ]


def test_changed_missing_and_added_files_are_named(tmp_path, write):
    out = tmp_path / "out"
    write(out)
    manifest = read_manifest(out)
    assert find_changed_files(out, manifest) == []
    (out / "model.onnx").write_bytes(b"something else")
    (out / "report.html").unlink()
    (out / "extra.txt").write_text("")
    assert find_changed_files(out, manifest) == ["extra.txt", "model.onnx", "report.html"]


@pytest.mark.parametrize("content", [None, b"{}", b"\xff"])
def test_a_manifest_that_cannot_be_read_is_a_readable_error(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_files_may_be_added_to_the_samples_and_nowhere_else(tmp_path, write):
    write(tmp_path / "out")
    (tmp_path / "out" / "samples" / "browser" / "node_modules").mkdir()
    (tmp_path / "out" / "samples" / "browser" / "node_modules" / "ort.mjs").write_text("")
    (tmp_path / "out" / "golden" / "other.bin").write_text("")
    (tmp_path / "out" / "samples" / "python" / "run.py").write_text("")
    changed = find_changed_files(tmp_path / "out", read_manifest(tmp_path / "out"))
    assert changed == ["golden/other.bin", "samples/python/run.py"]


def test_a_manifest_of_an_older_schema_is_refused_with_the_way_out(tmp_path, write):
    write(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"schema": "edgeopt/manifest-1"}))
    reason = "has the format edgeopt/manifest-1, but edgeopt .* reads edgeopt/manifest-3: build again, or use the"
    with pytest.raises(DataError, match=reason):
        read_manifest(tmp_path / "out")
