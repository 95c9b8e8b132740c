"""The samples for Android and iOS: nothing here compiles them, so a parser and the manifest's own words check them."""

import ast
import json
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import tree_sitter_kotlin
import tree_sitter_swift
from app_bundles import write_app_bundle
from tree_sitter import Language, Node, Parser

import edgeopt.bundle
from edgeopt.bundle.box_answers import BoxMaps
from edgeopt.bundle.golden import GoldenAnswer, GoldenBox, GoldenEntry, GoldenRole
from edgeopt.bundle.manifest import Manifest, TensorInfo
from edgeopt.records.preprocessing import (
    Alignment,
    ColorOrder,
    ImageLayout,
    ImagePreprocessing,
    ImageType,
    ResizeRule,
    SoundPreprocessing,
)

SAMPLES = Path(edgeopt.bundle.__file__).parent / "samples"
FOLDERS = ("android", "ios")
_KOTLIN, _SWIFT = Language(tree_sitter_kotlin.language()), Language(tree_sitter_swift.language())
LANGUAGES = {".kt": _KOTLIN, ".kts": _KOTLIN, ".swift": _SWIFT}
SOURCES = sorted(path for folder in FOLDERS for path in (SAMPLES / folder).iterdir() if path.suffix in LANGUAGES)
MOST_LINES = 300
MOST_COLUMNS = 120

PREPROCESSING = (ImagePreprocessing, SoundPreprocessing)
WHOLE = (GoldenEntry, GoldenAnswer, GoldenBox, BoxMaps, *PREPROCESSING)
"""Records of which each field changes what an app has to do."""
RECORDS = (Manifest, TensorInfo, *WHOLE)
"""What of a manifest an app reads."""
WORDS = {
    "Role": GoldenRole, "ResizeRule": ResizeRule, "ColorOrder": ColorOrder, "Layout": ImageLayout,
    "ImageType": ImageType, "Alignment": Alignment,
}  # fmt: skip
"""Closed words of the manifest, by the name of their enumeration in Swift."""
KINDS = {"image", "sound"}

SELF_TEST = {
    "self-test: passed",
    "self-test: this bundle has no golden files",
    "self-test: {}",
    "{} of '{}' is off by {}; {} is allowed",
    "output '{}' is off by {}; {} is allowed",
    "sample {} is '{}', not '{}'",
    "sample {} has no '{}' at {}",
    "sample {} has a '{}' at {} that the build has not found",
    "preprocessing",
    "resizing",
}
OF_JAVASCRIPT_ONLY = {"This page has no arrays of {}."}
SECOND_FILE = "The model has weights in a second file, which this sample does not load."
"""ONNX Runtime in Swift opens the model by its path, and finds that file itself."""


def parse(path, text=None):
    return Parser(LANGUAGES[path.suffix]).parse(text or path.read_bytes()).root_node


def nodes_of(node: Node):
    yield node
    for child in node.children:
        yield from nodes_of(child)


def mistakes_of(root):
    return [f"line {node.start_point.row + 1}: {node}" for node in nodes_of(root) if node.is_error or node.is_missing]


def text_of(literal):
    """Return a string literal's text with {} for each value in it."""
    parts = ["{}" if "interpol" in part.type else part.text.decode() for part in literal.named_children]
    return re.sub(r"\$\w+", "{}", "".join(parts))  # Kotlin's $name is plain text for the grammar


def literals_of(folder):
    kinds = ("string_literal", "line_string_literal")
    roots = (parse(path) for path in SOURCES if path.parent.name == folder)
    return [node for root in roots for node in nodes_of(root) if node.type in kinds]


def sentences_of(folder):
    return {text_of(node) for node in literals_of(folder)}


def javascript_sentences():
    source = "\n".join(path.read_text() for path in sorted((SAMPLES / "javascript").glob("*.js")))
    return {re.sub(r"\$\{[^}]*\}", "{}", found[1:-1]) for found in re.findall(r'"[^"\n]*"|`[^`]*`', source)}


def python_sentences():
    tree = ast.parse((SAMPLES / "python" / "run.py").read_text())
    formatted = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    plain = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return plain | {
        "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values) for node in formatted
    }


def fields_of(record):
    return set(record.__struct_fields__)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Of an image model, of a sound model and of a detector, as a build writes them."""
    bundles = [write_app_bundle(tmp_path_factory.mktemp("app"), kind) for kind in ("images", "sounds", "boxes")]
    return [json.loads((bundle / "manifest.json").read_text()) for bundle in bundles]


def keys_of(value):
    """Return every key of a JSON value and of what it contains."""
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def kotlin_keys():
    """Return the strings that are arguments and look like keys."""
    arguments = [text_of(node) for node in literals_of("android") if node.parent.type == "value_argument"]
    return {text for text in arguments if re.fullmatch(r"[a-z]+(_[a-z]+)*", text)}


def declarations_of_swift():
    root = parse(SAMPLES / "ios" / "Manifest.swift")
    declared = [node for node in nodes_of(root) if node.type == "class_declaration"]
    return {node.child_by_field_name("name").text.decode(): node for node in declared}


def properties_of(declaration):
    """Return the stored properties of a Swift structure by the names that JSONDecoder reads."""
    body = declaration.child_by_field_name("body")
    properties = [node for node in body.children if node.type == "property_declaration"]
    names = (node.child_by_field_name("name").text.decode() for node in properties)
    return {re.sub(r"([A-Z])", lambda found: f"_{found[1].lower()}", name) for name in names}


def cases_of(declaration):
    entries = [node for node in nodes_of(declaration) if node.type == "enum_entry"]
    return {name.text.decode() for entry in entries for name in entry.children_by_field_name("name")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_source_parses_and_is_short(path):
    assert mistakes_of(parse(path)) == []
    lines = path.read_text().splitlines()
    assert len(lines) < MOST_LINES
    assert max(map(len, lines)) <= MOST_COLUMNS


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_parser_notices_a_bracket_that_is_missing(path):
    last = max(path.read_bytes().rfind(bracket) for bracket in (b"}", b")"))
    assert mistakes_of(parse(path, path.read_bytes()[:last]))


def test_kotlin_reads_only_keys_of_the_manifest_and_leaves_none_out(manifests):
    known = set().union(*map(fields_of, RECORDS)) | {"kind"}
    read = kotlin_keys()
    assert read <= known
    assert read <= keys_of(manifests)
    for record in WHOLE:
        assert fields_of(record) <= read, record


def test_swift_reads_only_keys_of_the_manifest_and_leaves_none_out(manifests):
    declared = declarations_of_swift()
    for record in RECORDS:
        read = properties_of(declared[record.__name__])
        assert read <= fields_of(record), record
        assert read <= keys_of(manifests), record
        assert record not in WHOLE or read == fields_of(record), record
    assert cases_of(declared["CodingKeys"]) == {"kind"}


def test_the_schema_has_the_tag_by_which_the_samples_tell_images_from_sounds():
    definitions = msgspec.json.schema(Manifest)["$defs"]
    kinds = {definitions[record.__name__]["properties"]["kind"]["enum"][0] for record in PREPROCESSING}
    assert kinds == KINDS


def test_each_word_of_the_manifest_has_a_case():
    declared = declarations_of_swift()
    assert {name: cases_of(declared[name]) for name in WORDS} == {
        name: set(get_args(kind)) for name, kind in WORDS.items()
    }
    assert sentences_of("ios") >= KINDS
    assert sentences_of("android") >= KINDS.union(*map(get_args, WORDS.values()))


def test_the_self_test_has_the_same_words_in_all_samples():
    for found in (python_sentences(), javascript_sentences(), sentences_of("android"), sentences_of("ios")):
        assert found >= SELF_TEST


def test_errors_are_those_of_the_sample_in_javascript():
    errors = {text for text in javascript_sentences() if text.endswith(".") and " " in text} - OF_JAVASCRIPT_ONLY
    assert SECOND_FILE in errors
    assert sentences_of("android") >= errors
    assert sentences_of("ios") >= errors - {SECOND_FILE}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_bundle_has_the_files(folder, manifests):
    files = {f"samples/{folder}/{path.name}" for path in (SAMPLES / folder).iterdir()}
    assert {name for name in manifests[0]["files"] if name.startswith(f"samples/{folder}/")} == files
