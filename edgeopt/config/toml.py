"""TOML files to records: a path goes in, a validated record comes out; mistakes are named by file, table and key."""

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
"""How a limit is waived in a file or on the command line: by name, never by leaving it out (TOML has no null)."""

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}
_FOUND = {int: "a whole number", float: "a number", bool: "a truth value", str: "text", list: "a list", dict: "a table"}


def read_toml(path: Path) -> dict[str, object]:
    """Read a TOML file.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or is not TOML (the message has line and column).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}. Correct that place and run the command again.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None


def to_record(table: dict[str, object], kind: type[R], path: Path, section: str = "") -> R:
    """Turn a TOML table into a record whose fields are the table's keys.

    A key whose field may be None and has no default is a limit: it has to be there, and the word ``"none"`` waives it.

    Args:
        table: What was read.
        kind: The record; fields that are records themselves are tables of their own.
        path: The file, for messages.
        section: The table's name, empty at the top.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type.
    """
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    place = f"in [{section}]" if section else "at the top level"
    for key in table:
        if key not in fields:
            known = f"The keys {place} are: {', '.join(fields)}."
            raise ConfigError(f"{path}: unknown key '{key}' {place}{did_you_mean(key, fields)}. {known}")
    values: dict[str, object] = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _value(table[name], field, path, section)
        elif field.required:
            waive = f' (write {name} = "{WAIVED}" to waive that limit)' if _is_optional(field.type) else ""
            raise ConfigError(f"{path}: '{name}' is missing {place}: give {_expected(field.type)}{waive}.")
    return kind(**values)


def _value(found: object, field: msgspec.structs.FieldInfo, path: Path, section: str) -> object:
    """Convert one value, or say which key it stands at, what it is and what it should be."""
    hint = field.type
    if (inner := _record_in(hint)) is not None and isinstance(found, dict):
        return to_record(found, inner, path, f"{section}.{field.name}" if section else field.name)
    if field.required and _is_optional(hint) and found == WAIVED:
        return None
    try:
        return msgspec.convert(found, hint, strict=True)
    except msgspec.ValidationError:
        key = f"{field.name} in [{section}]" if section else field.name
        word = _FOUND.get(type(found), type(found).__name__)
        raise ConfigError(f"{path}: {key} is {found!r}, {word}; expected {_expected(hint, field.required)}.") from None


def _record_in(hint: object) -> type[Record] | None:
    """Return the record class that a field holds (perhaps optionally), or None."""
    for kind in (hint, *typing.get_args(hint)):
        if isinstance(kind, type) and issubclass(kind, Record):
            return kind
    return None


def _is_optional(hint: object) -> bool:
    return type(None) in typing.get_args(hint)


def _expected(hint: object, required: bool = True) -> str:
    """Say in words what a field's type takes."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is Literal:
        quoted = [f"'{word}'" for word in arguments]
        return quoted[0] if len(quoted) == 1 else f"one of {', '.join(quoted)}"
    if origin is tuple:
        return f"a list of {_expected(arguments[0])} each"
    if origin in (types.UnionType, typing.Union):
        words = [_expected(argument) for argument in arguments if argument is not type(None)]
        if required and type(None) in arguments:
            words.append(f"'{WAIVED}'")
        return " or ".join(words)
    if _record_in(hint) is not None:
        return "a table"
    return _WORDS.get(typing.cast(type, hint), str(hint))
