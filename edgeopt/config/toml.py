"""TOML files to records: a path goes in, a validated record comes out. Errors name the file, the table and the key."""

from __future__ import annotations

import tomllib
import types
import typing
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from edgeopt.errors import ConfigError, did_you_mean
from edgeopt.records.base import Record

R = TypeVar("R", bound=Record)

WAIVED = "none"
"""Waives a limit in a file or on the command line. Leaving the limit out doesn't (TOML has no null)."""

_EXPECTED_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}
_FOUND_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "a truth value",
    str: "text",
    list: "a list",
    dict: "a table",
}


def read_toml(path: Path) -> dict[str, object]:
    """Read a TOML file.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or is not TOML (the message has line and column).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}. Correct it and run the command again.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None


def to_record(table: dict[str, object], kind: type[R], path: Path, section: str = "") -> R:
    """Turn a TOML table into a record whose fields are the table's keys.

    A key whose field may be None and has no default is a limit: it has to be set, and the word ``"none"`` waives it.

    Args:
        table: As read from the file.
        kind: The record's class; a field that is a record is a table.
        path: The file, for messages.
        section: The table's name, empty at the top level.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type.
    """
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    location = f"in [{section}]" if section else "at the top level"
    for key in table:
        if key not in fields:
            known = f"The keys {location} are: {', '.join(fields)}."
            raise ConfigError(f"{path}: unknown key '{key}' {location}{did_you_mean(key, fields)}. {known}")
    values: dict[str, object] = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _convert(table[name], field, path, section)
        elif field.required:
            waive = f' (write {name} = "{WAIVED}" to waive that limit)' if _is_optional(field.type) else ""
            raise ConfigError(f"{path}: '{name}' is missing {location}: give {_describe_type(field.type)}{waive}.")
    return kind(**values)


def _convert(found: object, field: msgspec.structs.FieldInfo, path: Path, section: str) -> object:
    """Convert one value; the error names its key, the type that was found and the type that is expected."""
    hint = field.type
    if typing.get_origin(hint) is dict and isinstance(found, dict) and (inner := _record_in(hint)) is not None:
        return {name: _convert_entry(value, inner, path, f"{field.name}.{name}") for name, value in found.items()}
    if (inner := _record_in(hint)) is not None and isinstance(found, dict):
        return to_record(found, inner, path, f"{section}.{field.name}" if section else field.name)
    if field.required and _is_optional(hint) and found == WAIVED:
        return None
    try:
        return msgspec.convert(found, hint, strict=True)
    except msgspec.ValidationError:
        key = f"{field.name} in [{section}]" if section else field.name
        word = _FOUND_WORDS.get(type(found), type(found).__name__)
        expected = _describe_type(hint, field.required)
        raise ConfigError(f"{path}: {key} is {found!r}, {word}; expected {expected}.") from None


def _convert_entry(found: object, kind: type[Record], path: Path, section: str) -> Record:
    """Convert one table of a table of tables."""
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: {section} is {found!r}; expected a table, [{section}].")
    return to_record(found, kind, path, section)


def _record_in(hint: object) -> type[Record] | None:
    """Return the record class of a field, optional or not, or None if it has none."""
    for kind in (hint, *typing.get_args(hint)):
        if isinstance(kind, type) and issubclass(kind, Record):
            return kind
    return None


def _is_optional(hint: object) -> bool:
    return type(None) in typing.get_args(hint)


def _describe_type(hint: object, required: bool = True) -> str:
    """Return a field's type in words."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is Literal:
        quoted = [f"'{word}'" for word in arguments]
        return quoted[0] if len(quoted) == 1 else f"one of {', '.join(quoted)}"
    if origin is tuple:
        return f"a list, each entry {_describe_type(arguments[0])}"
    if origin is dict:
        return f"a table, each value {_describe_type(arguments[1])}"
    if origin in (types.UnionType, typing.Union):
        words = [_describe_type(argument) for argument in arguments if argument is not type(None)]
        if required and type(None) in arguments:
            words.append(f"'{WAIVED}'")
        return " or ".join(words)
    if _record_in(hint) is not None:
        return "a table"
    return _EXPECTED_WORDS.get(typing.cast(type, hint), str(hint))
