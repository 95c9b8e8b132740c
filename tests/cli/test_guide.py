"""``edgeopt guide``: every guide is listed, printed, and its example is Python."""

import ast
import subprocess
import sys

import pytest
from click.testing import CliRunner

from edgeopt.cli.guide import GUIDES, command, list_guides
from edgeopt.errors import InputError


def run(*arguments):
    return CliRunner().invoke(command, arguments, standalone_mode=False)


def test_every_guide_is_listed_with_its_title():
    shown = run().output
    for path in GUIDES.glob("*.md"):
        assert path.stem in shown
        assert path.read_text("utf-8").splitlines()[0].lstrip("# ") in shown


@pytest.mark.parametrize(
    "name", [name for name in list_guides() if name not in ("app", "cluster", "design", "onnx-files", "scores")]
)
def test_a_guide_and_its_example_are_printed(name):
    text = (GUIDES / f"{name}.md").read_text("utf-8")
    assert run(name).output == run(f"{name}.md").output == text
    code = run(name, "--code").output
    assert code in text
    ast.parse(code)
    assert any(line.startswith("task = ") for line in code.splitlines())


def test_an_unknown_guide_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"there is no guide 'detections' \(did you mean 'detection'\?\)\. Guides: "):
        raise run("detections").exception
    with pytest.raises(InputError, match="the guide 'design' has no example"):
        raise run("design", "--code").exception


def test_links_between_guides_are_right():
    import re

    for path in GUIDES.glob("*.md"):
        for name in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text("utf-8")):
            assert (GUIDES / name).exists(), f"{path.name}: {name}"


def test_the_command_needs_no_torch():
    code = "import sys, edgeopt.cli.guide as g; g.list_guides(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
