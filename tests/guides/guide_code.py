"""The code of a guide as files in a folder, next to stand-ins for the user's own project."""

import contextlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "edgeopt" / "guides"
PROJECTS = Path(__file__).parent / "projects"


def code_of(guide):
    """Return the Python blocks of a guide by the file name in their first line."""
    text = (GUIDES / f"{guide}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# ([\w.]+)\n(.*?)```", text, re.DOTALL)
    assert blocks, guide
    return dict(blocks)


@contextlib.contextmanager
def guide_project(guide, folder, **modules):
    """Write a guide's code and its user's modules to a folder, which is importable and current inside the block.

    Args:
        guide: Its name.
        folder: An empty one.
        modules: Names that the code imports, to names in ``projects``.
    """
    files = code_of(guide)
    files |= {f"{name}.py": (PROJECTS / f"{source}.py").read_text("utf-8") for name, source in modules.items()}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    path = list(sys.path)
    sys.path.insert(0, str(folder))
    for name in files:
        sys.modules.pop(Path(name).stem, None)  # of another test
    try:
        with contextlib.chdir(folder):
            yield folder
    finally:
        sys.path[:] = path
        for name in files:
            sys.modules.pop(Path(name).stem, None)
