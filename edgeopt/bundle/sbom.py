"""``sbom.json``: the parts of a bundle in the form that supply-chain tools read, CycloneDX 1.6.

A manifest goes in, a document comes out: the model as a component with its hash and licence, and the packages that
made it. These are ``excluded`` from what ships: an app needs none of them, only a runtime of its own choice.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edgeopt
from edgeopt.bundle.manifest import Manifest

SBOM_NAME = "sbom.json"
_MODEL = "model.onnx"
_MODEL_REFERENCE = "model"


def describe_parts(manifest: Manifest, time: str) -> dict[str, Any]:
    """Return the list of parts of a bundle that has a model, as CycloneDX's JSON.

    Args:
        manifest: With the hashes of the bundle's files.
        time: When the bundle was written, in UTC (ISO 8601); empty if that isn't known.
    """
    sha256 = manifest.files[_MODEL].sha256
    packages = [_package(name, version) for name, version in sorted(manifest.versions.items())]
    tool = {"type": "application", "name": "edgeopt", "version": edgeopt.__version__}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, f"{sha256} {time}").urn,
        "version": 1,
        "metadata": {
            **({"timestamp": time} if time else {}),
            "tools": {"components": [tool]},
            "component": _model(manifest),
        },
        "components": packages,
        "dependencies": [{"ref": _MODEL_REFERENCE}, *({"ref": package["bom-ref"]} for package in packages)],
    }


def _model(manifest: Manifest) -> dict[str, Any]:
    """Return the component of the model; files of large weights and ``model.ort`` are parts of it."""
    sha256 = manifest.files[_MODEL].sha256
    further = [
        {"type": "file", "name": name, "hashes": _hashes(entry.sha256)}
        for name, entry in manifest.files.items()
        if "/" not in name and name.endswith((".data", ".ort"))
    ]
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL_REFERENCE,
        "name": _without_folder(manifest.task),
        "version": sha256[:12],
        "hashes": _hashes(sha256),
        **({"licenses": [{"license": {"name": manifest.licence}}]} if manifest.licence else {}),
        **({"components": further} if further else {}),
        "properties": [{"name": f"edgeopt:{name}", "value": value} for name, value in _properties(manifest)],
    }


def _without_folder(task: str) -> str:
    """Return the name of a task without the folder of its file: a list of parts goes to other people."""
    return Path(task).name


def _properties(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "file", _MODEL
    yield "size_bytes", str(manifest.files[_MODEL].size_bytes)
    yield "target", manifest.target
    yield "min_onnxruntime", manifest.min_onnxruntime


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _package(name: str, version: str) -> dict[str, Any]:
    """Return the component of a Python package, with the identifier by which scanners look it up."""
    identifier = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version.replace('+', '%2B')}"
    return {
        "type": "library",
        "bom-ref": identifier,
        "name": name,
        "version": version,
        "purl": identifier,
        "scope": "excluded",
    }
