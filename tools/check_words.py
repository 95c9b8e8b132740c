"""Find phrases that read as translated, in everything a person reads: messages, help, docstrings, pages, guides.

python tools/check_words.py [FILE ...]

Without files: all strings of the package (docstrings too), its page templates, its guides, the profiles' comments,
README, CONTRIBUTING and the benchmarks' README. The exit code is 1 if there are any. Comments in code are left to the
reader.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

PHRASES: dict[str, str] = {
    r"\banew\b": "again",
    r"\bbeside\b(?! (it|them|each other|one another)\b)": "besides, next to, with",
    r"(?<![Tt]here )\bis no (?!longer\b|more\b|less\b|\w+er\b|\w+er than\b)\w": "isn't a ..., has no ...",
    r"\bhangs? on\b": "depends on",
    r"\bso many\b": "that many, a number",
    r"\b(is|are|was) said\b": "is reported, is shown",
    r"\bfore(told|tell)s?\b": "predicted, estimated",
    r"\b(told|tell)s? apart\b": "distinguishable, distinguish",
    r"\btaken up\b": "reused",
    r"\btwins?\b": "float counterpart",
    r"\bheirs?\b": "fallback",
    r"\blossy\b": "say what is lost",
    r"\bas two\b": "factorized",
    r"\bsize bracket\b|\bthe bracket\b": "range",
    r"\b(candidates|trainings|trained|train|made) side by side\b": "in parallel",
    r"\bhalf of candidates\b": "part",
    r"\b(it|that|this|which|file|model|device) bears\b": "has",
    r"\bmakes? way for\b": "is replaced by",
    r"\bgoes to waste\b": "is wasted",
    r"\bate the gain\b": "became slower",
    r"[Ll]eave this step out": "there is no such option",
    r"\bwhere (there (is|are|was|were)|it (is|was) (not|none)|none (is|are|was)|nothing (is|was|keeps))\b": "if ...",
    r"(?:^|[.:] )(None|Empty|0|True|False) where\b": "... if",
    r"\bAnything else than\b": "anything other than",
    r"\ba teacher takes and gives\b": "has the same inputs and outputs",
    r"\bdo(es)? not (?:tell|say)\b(?= (?:it|which|how|what))": "cannot report",
    r"\bmeets? the (float|baseline)\b": "is compared with",
}
"""Regular expression to what a native engineer would write."""

TEXT_FILES = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "edgeopt/guides/*.md",
              "edgeopt/report/templates/*.html", "edgeopt/device/web/*.html", "targets/*.toml")  # fmt: skip


def strings_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the strings of a Python file with their lines; the parts of an f-string are one string."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.lineno, node.value


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield what a person reads of a file, with its lines."""
    if path.suffix == ".py":
        for line, text in strings_of(path):
            yield line, " ".join(text.split())
    else:
        yield from enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)


def find_phrases(path: Path) -> Iterator[str]:
    """Yield a line for each phrase in a file."""
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    for line, text in texts(path):
        for pattern, better in PHRASES.items():
            for found in re.finditer(pattern, text):
                context = text[max(0, found.start() - 40) : found.end() + 40].strip()
                yield f"{name}:{line}: “{found.group().strip()}” ({better}): … {context} …"


def all_files() -> list[Path]:
    """Return every file that a person reads."""
    return [
        *sorted((ROOT / "edgeopt").rglob("*.py")),
        *(path for pattern in TEXT_FILES for path in sorted(ROOT.glob(pattern))),
    ]


def main() -> None:
    """Print the phrases and end with 1 if there are any."""
    files = [Path(name).resolve() for name in sys.argv[1:]] or all_files()
    found = [line for path in files for line in find_phrases(path)]
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
