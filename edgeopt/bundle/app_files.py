"""What a bundle has for the developer of an app: a model card, and samples that run.

The samples are the same for every model: they follow ``manifest.json``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeopt.bundle.manifest import SAMPLES_FOLDER, Manifest
from edgeopt.bundle.model_card import render_card
from edgeopt.report.document import Document

_SAMPLES = Path(__file__).parent / "samples"
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "__init__.py", ".*", "build", "node_modules")


def write_app_files(bundle: Path, document: Document, manifest: Manifest) -> None:
    """Write the card and the samples into a bundle that has a model."""
    (bundle / "README.md").write_text(render_card(document, manifest), encoding="utf-8")
    shutil.copytree(_SAMPLES, bundle / SAMPLES_FOLDER, ignore=_LEFT_OUT, copy_function=shutil.copyfile)
