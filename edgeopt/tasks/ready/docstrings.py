"""Texts about Python's standard library, each with its topic: paragraphs of docstrings, and comments.

They are read from the sources of the Python that runs, and are the same for the same version of it. A text is in the
same part in every version: 70 of 100 train, 15 select and 15 test, by a hash of the text.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError
from edgeopt.tasks.name_hash import hash_percent

TextPart = Literal["train", "selection", "test"]

TOPICS = {
    "asynchronous": "asyncio selectors contextvars",
    "processes": "threading _threading_local multiprocessing concurrent queue sched subprocess signal",
    "mail": "email mailbox smtplib imaplib poplib quopri mimetypes netrc base64",
    "network": "http urllib wsgiref xmlrpc socketserver ftplib ssl socket ipaddress webbrowser uuid",
    "markup": "xml html plistlib json csv configparser tomllib",
    "numbers": "_pydecimal statistics fractions random numbers datetime _pydatetime calendar colorsys bisect heapq "
    "hashlib hmac secrets _strptime",
    "modules": "importlib zipimport pkgutil runpy modulefinder zipapp sysconfig site compileall py_compile",
    "tests": "unittest doctest pdb bdb trace traceback cProfile profile pstats timeit tracemalloc",
    "code": "ast dis inspect typing tokenize symtable pydoc pickletools pickle dataclasses enum abc types copyreg copy "
    "functools contextlib collections _collections_abc weakref _weakrefset reprlib operator opcode codeop code",
    "files": "os posixpath ntpath genericpath pathlib shutil tempfile tarfile zipfile gzip bz2 lzma _compression glob "
    "fnmatch filecmp fileinput _pyio stat linecache shelve dbm",
    "text": "difflib textwrap string re gettext locale codecs encodings cmd shlex argparse optparse getopt getpass",
    "reports": "logging warnings platform sqlite3 ctypes curses",
}
"""Topic to the modules and packages that it is about; a module that a version of Python lacks is left out."""
MAX_WORDS = 64
"""Of a text; what comes after them is left out."""
TABLE_ROWS = 4096
PADDING, HIDDEN = 0, 1
"""Ids that no word has."""
_MIN_WORDS = 6
_MIN_TEXTS_PER_TOPIC = 300
_TEST_PERCENT, _SELECTION_PERCENT = 15, 15
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\sA-Za-z\d_]")
_COMMENT = re.compile(r"\s*#+\s?(.*)")


class Text(NamedTuple):
    """``words`` are int64 ids, at most ``MAX_WORDS``; ``label`` is an index into ``TOPICS``."""

    words: NDArray[np.int64]
    label: int


def split_words(text: str) -> list[str]:
    """Return the words, numbers and signs of a text in lower case; ``readLine`` and ``read_line`` are two words."""
    return [word.lower() for word in _WORD.findall(text)]


def word_ids(words: list[str]) -> NDArray[np.int64]:
    """Return an id for each word, by a checksum of it, so that an app needs no list of words."""
    return np.array([2 + zlib.crc32(word.encode()) % (TABLE_ROWS - 2) for word in words], np.int64)


def load_texts(part: TextPart) -> list[Text]:
    """Return a part, in the order of topics, modules and files.

    Raises:
        DataError: Python's modules are there without their sources.
    """
    return _load_all()[part]


@cache
def _load_all() -> dict[TextPart, list[Text]]:
    """Return the texts of all parts; one that occurs several times counts once."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    parts: dict[TextPart, list[Text]] = {"train": [], "selection": [], "test": []}
    for label, (topic, modules) in enumerate(TOPICS.items()):
        before = len(seen)
        for path in (path for module in modules.split() for path in _sources(folder, module)):
            for text in _texts(path):
                words = split_words(text)
                key = " ".join(words)
                if key not in seen and sum(word.isalpha() for word in words) >= _MIN_WORDS:
                    seen.add(key)
                    parts[_part_of(key)].append(Text(word_ids(words[:MAX_WORDS]), label))
        if len(seen) - before < _MIN_TEXTS_PER_TOPIC:
            raise DataError(
                f"{folder} has only {len(seen) - before} texts about {topic}: Python's standard library is not there "
                "as source files. Run edgeopt with a Python that has all of it."
            )
    return parts


def _part_of(key: str) -> TextPart:
    percent = hash_percent(key)
    if percent < _TEST_PERCENT:
        return "test"
    return "selection" if percent < _TEST_PERCENT + _SELECTION_PERCENT else "train"


def _sources(folder: Path, module: str) -> list[Path]:
    """Return the source files of a module or a package, without its tests."""
    single = folder / f"{module}.py"
    if single.is_file():
        return [single]
    inside = sorted((folder / module).rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix())
    return [path for path in inside if not {"test", "tests"} & set(path.relative_to(folder).parts)]


def _texts(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a file's docstrings, and then its comments that have lines of their own."""
    source = path.read_text(encoding="utf-8", errors="replace")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from re.split(r"\n\s*\n", ast.get_docstring(node) or "")
    comment: list[str] = []
    for line in [*source.splitlines(), ""]:
        match = _COMMENT.match(line)
        if match:
            comment.append(match[1])
        elif comment:
            yield " ".join(comment)
            comment = []
