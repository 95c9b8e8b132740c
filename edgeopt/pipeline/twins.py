"""What follows where an int8 file is slower than the same network in float32 on the device that counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from edgeopt.pipeline.candidates import Candidate
from edgeopt.pipeline.forms import Form
from edgeopt.pipeline.networks import export
from edgeopt.pipeline.quantizing import lighter, study
from edgeopt.records.codec import network_key
from edgeopt.records.recipe import Quantize
from edgeopt.records.trial import Measured, Trial
from edgeopt.statistics import verdict

if TYPE_CHECKING:
    from edgeopt.pipeline.rounds import Search


def against_twin(search: Search, number: int, outcome: Measured, twin: str) -> Measured:
    """Return an int8 trial's outcome with its A/B against its float32 form, and where it lost if it is slower.

    Args:
        search: The search.
        number: Of the trial.
        outcome: Of the trial.
        twin: SHA-256 of the float32 file.
    """
    search.build.progress("compare", f"trial {number} with its float32 form")
    comparison = search.scale.comparison(outcome.artifact.sha256, twin)
    slower = verdict(comparison) == "slower"
    changes = search.scale.changes(outcome.artifact.sha256, twin) if slower else ()
    return msgspec.structs.replace(outcome, against_twin=comparison, twin_changes=changes)


def lighter_forms(search: Search, trial: Trial) -> Iterator[Form]:
    """Yield forms of a static int8 trial with more nodes in float that were not tried yet: the choice may be one."""
    build, steps, parent = search.build, trial.recipe.torch_steps, trial.recipe.parent
    step = next((step for step in trial.recipe.graph_steps if isinstance(step, Quantize)), None)
    key = network_key(build.fingerprint, steps, build.seed, parent, build.versions) if steps else None
    network = search.networks.get(key)
    if step is None or network is None:
        return
    candidate = Candidate(steps=steps, parent=parent)
    exported = export(build, network) if steps else search.exported
    known = [other.recipe for other in search.trials]
    for mix in lighter(build, study(build, exported, rank=False), step):
        if search.recipe(candidate, mix.steps) not in known:
            yield search.form(candidate, network, exported, mix.steps, {}, mix.notes)
