"""Every architecture of the coverage benchmark, with those apart that came into the zoo after the pruning rules."""

from __future__ import annotations

from benchmarks.zoo import ARCHITECTURES
from benchmarks.zoo.architecture import Architecture
from benchmarks.zoo.fresh import FRESH
from benchmarks.zoo.hugging_face import HUGGING_FACE
from benchmarks.zoo.model_types import MODEL_TYPES

NEW: dict[str, Architecture] = {**FRESH, **MODEL_TYPES}
EVERY: dict[str, Architecture] = {**ARCHITECTURES, **HUGGING_FACE, **NEW}
