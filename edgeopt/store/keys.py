"""Keys: every part that a build keeps is named by everything it depends on.

``DEPENDENCIES`` says for each kind of part which facts of a build its key contains: an edited task never meets an old
network, and a new limit never trains again. On top of these come the details that single out one part, such as its
recipe. A part may be reused only if its key is the same, so a fact that is missing here is a bug: a wrong number.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from edgeopt.records.base import Record
from edgeopt.records.calibration import Calibration
from edgeopt.records.codec import digest
from edgeopt.records.measurement import DeviceInfo
from edgeopt.records.profile import Runtime, TimingRule
from edgeopt.records.recipe import Recipe, TorchStep

Kind = Literal[
    "group-table", "network", "diverged-training", "low-rank-table", "sparsity-curve", "fake-quant-sites",
    "finished-search", "exported-file", "artifact", "sensitivity-study",
    "bit-study", "score", "sample-scores", "measurement",
    "comparison", "device-parity", "latency-table", "no-latency-table", "shared-layer-times", "allocation",
    "layer-times", "float-prefix", "score-check", "parallel-training", "given-training",
    "input-sizes",
]  # fmt: skip

Dependency = Literal["task", "makers", "seed", "ceilings", "hardware", "device", "providers", "session", "timing"]
"""A fact of the build.

- ``task``: the model (weights and source), its teacher, its data and its score function.
- ``makers``: versions of the packages that make networks and files on this machine, onnxruntime among them.
- ``seed``: of training.
- ``ceilings``: the highest operator set and IR version that the target allows.
- ``hardware``: the processor, or other hardware, that runs files, and its onnxruntime.
- ``device``: the hardware, how it was named (its URI), and whether it is the target or a stand-in.
- ``providers``: execution providers, and those that may take over.
- ``session``: providers, threads, cores, memory arena, optimization level, batch size and other sizes of the inputs.
- ``timing``: how long files are timed, and the calibration that an estimate rests on.
"""

DEPENDENCIES: dict[Kind, tuple[Dependency, ...]] = {
    "group-table": ("task", "makers"),
    "network": ("task", "makers", "seed"),
    "diverged-training": ("task", "makers", "seed"),
    "low-rank-table": ("task", "makers"),
    "sparsity-curve": ("task", "makers"),
    "fake-quant-sites": ("task", "makers"),
    "finished-search": ("task", "makers", "seed"),
    "exported-file": ("task", "makers", "ceilings"),
    "artifact": ("task", "makers", "ceilings", "seed"),
    "sensitivity-study": ("task", "makers"),
    "bit-study": ("task", "makers"),
    "score": ("task", "hardware", "providers"),
    "sample-scores": ("task", "hardware", "providers"),
    "score-check": ("task", "hardware", "providers"),
    "measurement": ("device", "session", "timing"),
    "comparison": ("device", "session", "timing"),
    "device-parity": ("task", "makers", "device", "providers"),
    "latency-table": ("task", "makers", "hardware", "session"),
    "no-latency-table": ("task", "makers", "hardware", "session"),
    "shared-layer-times": ("hardware", "session"),
    "allocation": ("makers",),
    "layer-times": ("makers", "hardware", "session"),
    "float-prefix": ("task", "makers", "device", "session"),
    "parallel-training": ("task", "makers"),
    "given-training": ("task", "makers", "ceilings"),
    "input-sizes": ("task", "makers"),
}
"""Which facts the key of each kind contains, besides the details that the caller gives: for an artifact its recipe."""


class Key(NamedTuple):
    """Names one part."""

    kind: Kind
    digest: str


class BuildFacts(Record, frozen=True, kw_only=True):
    """All facts of a build that a part may depend on."""

    task: str
    """Fingerprint of the task's content."""
    makers: dict[str, str]
    """Package to version."""
    seed: int
    max_opset: int
    max_ir: int
    device: DeviceInfo
    device_onnxruntime: str
    runtime: Runtime
    allow_fallback: tuple[str, ...]
    batch_size: int
    sizes: tuple[dict[str, int], ...]
    """Of dynamic dimensions besides the batch."""
    timing: TimingRule
    calibration: Calibration | None

    def value(self, dependency: Dependency) -> object:
        """Return what a key contains for a dependency."""
        match dependency:
            case "task":
                return self.task
            case "makers":
                return self.makers
            case "seed":
                return self.seed
            case "ceilings":
                return self.max_opset, self.max_ir
            case "hardware":
                return self.device.id, self.device_onnxruntime
            case "device":
                return self.device, self.device_onnxruntime
            case "providers":
                providers, libraries = (self.runtime.providers, self.allow_fallback), self.runtime.provider_libraries
                return (*providers, libraries) if libraries else providers
            case "session":
                session = (self.runtime, self.allow_fallback, self.batch_size)
                return (*session, self.sizes) if any(self.sizes) else session
            case "timing":
                return self.timing, self.calibration


class Keys:
    """Makes the keys of one build.

    Args:
        facts: Of the build.
    """

    def __init__(self, facts: BuildFacts) -> None:
        self.facts = facts

    def of(self, kind: Kind, **details: object) -> Key:
        """Return the key of a part.

        Args:
            kind: Decides which facts of the build the key contains.
            details: What singles the part out among those of its kind; values that can be written as JSON.
        """
        facts = {name: self.facts.value(name) for name in DEPENDENCIES[kind]}
        return Key(kind, digest((kind, facts, details)))

    def network(self, torch_steps: tuple[TorchStep, ...], parent: str | None) -> str:
        """Return the name of a trained network: the steps, and the name of the network they start from."""
        return self.of("network", torch_steps=torch_steps, parent=parent).digest

    def network_of(self, recipe: Recipe) -> str | None:
        """Return the name of the network that a trial's file was made of; None for the original."""
        return self.network(recipe.torch_steps, recipe.parent) if recipe.torch_steps else recipe.parent
