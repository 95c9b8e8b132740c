"""Samples split by a hash of their names, so that new ones move no other to another part."""

from __future__ import annotations

import hashlib
import unicodedata


def hash_percent(name: str) -> int:
    """Return a number from 0 to 99 that depends only on a name, the same on every system.

    It is made of the first 64 bits of the SHA-256 of the name in Unicode's normal form C.
    """
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100
