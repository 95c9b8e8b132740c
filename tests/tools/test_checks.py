"""The checks of names and words find what they are for, and leave good text alone."""

import importlib.util
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def a_tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_a_public_name_that_is_defined_twice_is_found_with_its_modules(tmp_path):
    write(tmp_path, one="class Finding: ...\nLIMIT = 1", other="def Finding(): ...\nLIMIT: int = 2\nmine = 3")
    assert a_tool("check_names").find_duplicates(tmp_path) == {
        "Finding": ["one.py", "other.py"],
        "LIMIT": ["one.py", "other.py"],
    }


def test_private_names_type_variables_conventions_and_inner_names_may_be_equal(tmp_path):
    text = """
T = TypeVar("T")
_STAGE = "x"
RULES = {}

def main():
    local = 1

class {name}:
    attribute = 1
"""
    write(tmp_path, one=text.replace("{name}", "One"), other=text.replace("{name}", "Other"))
    assert a_tool("check_names").find_duplicates(tmp_path) == {}


@pytest.mark.parametrize(
    "text",
    [
        "It is measured anew.",
        "the file is no ONNX model",
        "latency hangs on the processor",
        "Leave this step out.",
        "None where there is none.",
        "predicted, not foretold",
        "its float twin is slower",
        "7 candidates are taken up",
    ],
)
def test_a_phrase_is_found_in_docstrings_f_strings_and_pages(tmp_path, text):
    find = a_tool("check_words").find_phrases
    write(tmp_path, docstring=f'"""{text}"""', formatted=f'x = f"{{1}} {text} {{2}}"')
    (tmp_path / "guide.md").write_text(f"# Title\n\n{text}\n")
    for name in ("docstring.py", "formatted.py", "guide.md"):
        assert list(find(tmp_path / name)), name


@pytest.mark.parametrize(
    "text",
    [
        "There is no file; the model is no longer there; this is no faster than that.",
        "The folder where files are kept.",
        "If it is larger, it is measured again.",
    ],
)
def test_good_english_is_left_alone(tmp_path, text):
    write(tmp_path, good=f'"""{text}"""')
    assert list(a_tool("check_words").find_phrases(tmp_path / "good.py")) == []


def test_comments_in_code_are_left_to_the_reader(tmp_path):
    write(tmp_path, comment="# measured anew\nx = 1")
    assert list(a_tool("check_words").find_phrases(tmp_path / "comment.py")) == []
