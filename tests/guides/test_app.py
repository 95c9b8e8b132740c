"""The guide to apps: its ten lines, with the bundle alone, name the class of a JPEG."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from app_bundles import COLORS, draw_pixels, write_app_bundle
from PIL import Image

GUIDE = Path(__file__).parents[2] / "edgeopt" / "guides" / "app.md"


@pytest.mark.parametrize("seed", [0, 2])
def test_ten_lines_from_the_manifest_classify_a_jpeg(tmp_path, seed):
    bundle = write_app_bundle(tmp_path, "plain images")
    bundle.rename(tmp_path / "edgeopt-out")
    Image.fromarray(np.kron(draw_pixels(seed), np.ones((4, 4, 1), np.uint8))).save(tmp_path / "photo.jpg", quality=95)
    code = GUIDE.read_text().split("```python\n")[1].partition("```")[0]
    assert len(code.replace("\n\n", "\n").splitlines()) <= 10
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    answers = json.loads((tmp_path / "edgeopt-out" / "manifest.json").read_text())["answers"]
    assert done.stdout.strip() == next(answer["label"] for answer in answers if answer["sample"] == seed)
    assert done.stdout.strip() in COLORS
