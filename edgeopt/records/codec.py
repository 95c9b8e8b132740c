"""Records to JSON and back, and a digest that names a value by its content."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec

from edgeopt.records.base import Record

R = TypeVar("R", bound=Record)

_encoder = msgspec.json.Encoder(order="deterministic")


def to_json(value: object) -> bytes:
    """Encode a record (or plain values around records) as JSON with sorted keys."""
    return _encoder.encode(value)


def from_json(data: bytes | str, kind: type[R]) -> R:
    """Decode and validate a record.

    Raises:
        msgspec.ValidationError: a field is unknown, missing or of the wrong type; the message has its path.
        msgspec.DecodeError: the data is not JSON.
    """
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except UnicodeDecodeError as error:  # of a string inside; msgspec lets it through
        raise msgspec.DecodeError(str(error)) from error


def digest(value: object) -> str:
    """Name a value by its content: the first 20 hex digits of the SHA-256 of its JSON."""
    return hashlib.sha256(to_json(value)).hexdigest()[:20]
