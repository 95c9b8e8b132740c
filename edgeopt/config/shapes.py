"""The sizes at which latency and memory are judged: ``--shape input=1x3x480x640``, or ``shapes`` of a target."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeopt.errors import ConfigError

InputShapes = dict[str, tuple[int, ...]]
"""Input name to shape."""

_SHAPE = re.compile(r"(?P<name>.+)=(?P<sizes>\d+(x\d+)*)")


def parse_shapes(texts: Sequence[str], source: str) -> tuple[InputShapes, ...]:
    """Read shapes, each of one or more inputs that belong together: ``tokens=1x64,mask=1x64``.

    Args:
        texts: One for each case that has to keep the limits.
        source: Names the option or the file in errors.

    Raises:
        ConfigError: a text is not of this form.
    """
    return tuple(_parse(text, source) for text in texts)


def merge_shapes(texts: Sequence[str], source: str) -> InputShapes:
    """Read shapes that are one case together.

    Raises:
        ConfigError: see ``parse_shapes``.
    """
    return {name: shape for shapes in parse_shapes(texts, source) for name, shape in shapes.items()}


def _parse(text: str, source: str) -> InputShapes:
    shapes: InputShapes = {}
    for part in text.split(","):
        match = _SHAPE.fullmatch(part.strip())
        if match is None or 0 in (sizes := tuple(map(int, match["sizes"].split("x")))):
            raise ConfigError(
                f"{source} '{text}' is not of the form NAME=SIZExSIZE, such as input=1x3x480x640; several inputs are "
                "separated by commas."
            )
        shapes[match["name"]] = sizes
    return shapes
