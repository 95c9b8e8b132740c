"""Find public names that are defined in two modules of the package: a reader could not tell which one is meant.

python tools/check_names.py

The exit code is 1 if there are any. A name is public if it is at the top level of a module without an underscore.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "edgeopt"

CONVENTIONS = {
    "command": "one in each module of cli, which the lazy group finds by this name",
    "main": "one in each module that runs as a process",
    "RULES": "the table of each family of pruning rules",
    "TABLE": "the table of each subject of ONNX's operators",
    "OWN_TABLE": "the same of operators that the conversion writes",
}
"""Names that several modules share on purpose; they are only reached through the name of their module."""


def public_names(module: ast.Module) -> Iterator[str]:
    """Yield the public names that a module defines at its top level; type variables are nobody's vocabulary."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign) and not is_type_variable(node.value):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


def is_type_variable(value: ast.expr) -> bool:
    """Tell whether a value is ``TypeVar(...)`` or ``ParamSpec(...)``."""
    return isinstance(value, ast.Call) and ast.unparse(value.func) in ("TypeVar", "ParamSpec")


def find_duplicates(package: Path = PACKAGE) -> dict[str, list[str]]:
    """Return each name that is defined more than once, with its modules."""
    modules: dict[str, list[str]] = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        for name in set(public_names(ast.parse(path.read_text(encoding="utf-8")))):
            modules[name].append(path.relative_to(package).as_posix())
    return {name: found for name, found in sorted(modules.items()) if len(found) > 1 and name not in CONVENTIONS}


def main() -> None:
    """Print the names and end with 1 if there are any."""
    duplicates = find_duplicates()
    for name, modules in duplicates.items():
        print(f"{name} is defined in {', '.join(modules)}: give each its own name, or a leading underscore")
    sys.exit(1 if duplicates else 0)


if __name__ == "__main__":
    main()
