"""Architectures that came into the zoo after the pruning rules: from public definitions, with random weights.

Their figures say more about networks that nobody has met yet than those of the older part, so they are counted apart.
"""

from __future__ import annotations

from benchmarks.zoo.architecture import Architecture
from benchmarks.zoo.fresh.audio import AUDIO
from benchmarks.zoo.fresh.classifiers import CLASSIFIERS
from benchmarks.zoo.fresh.computed import COMPUTED
from benchmarks.zoo.fresh.dense import DENSE
from benchmarks.zoo.fresh.detectors import DETECTORS
from benchmarks.zoo.fresh.forecasts import FORECASTS
from benchmarks.zoo.fresh.geometry import GEOMETRY
from benchmarks.zoo.fresh.hybrids import HYBRIDS
from benchmarks.zoo.fresh.images import IMAGES
from benchmarks.zoo.fresh.motion import MOTION
from benchmarks.zoo.fresh.recommenders import RECOMMENDERS
from benchmarks.zoo.fresh.sequences import SEQUENCES

FRESH: dict[str, Architecture] = {
    **CLASSIFIERS,
    **HYBRIDS,
    **DENSE,
    **DETECTORS,
    **IMAGES,
    **MOTION,
    **AUDIO,
    **SEQUENCES,
    **FORECASTS,
    **RECOMMENDERS,
    **GEOMETRY,
    **COMPUTED,
}
"""By name; not part of ``ZOO``, over which the tests of the rules run."""
