"""Builds without a task or a device: only what the function under test asks of one."""

from types import SimpleNamespace

from builders import a_budget, a_device, a_profile, an_environment

from edgeopt.bench.run_target import RunTarget
from edgeopt.pipeline.context import Clock
from edgeopt.records.recipe import Distill
from edgeopt.store.keys import BuildFacts, Keys

A_DISTILLATION = Distill(
    epochs=1, optimizer="sgd", learning_rate=0.01, weight_decay=0.0, warmup_ratio=0.1, temperature=4.0, kl_weight=0.9,
    mse_weight=0.0, hard_weight=0.1,
)  # fmt: skip
"""One epoch."""


def build_facts(**changes):
    """Facts of a build, as keys contain them."""
    profile = changes.pop("profile", None) or a_profile()
    facts = {
        "task": "task",
        "makers": {"edgeopt": "1"},
        "seed": 0,
        "max_opset": profile.max_opset,
        "max_ir": profile.max_ir,
        "device": a_device(),
        "device_onnxruntime": "1.32.0",
        "runtime": profile.runtime,
        "allow_fallback": (),
        "batch_size": 1,
        "sizes": ({},),
        "timing": profile.timing,
        "calibration": None,
    }
    return BuildFacts(**(facts | changes))


def a_stub_build(*, facts=None, **attributes):
    """A build with real keys; everything else is given, or does nothing."""
    profile = attributes.get("profile") or a_profile()
    known = {
        "profile": profile,
        "budget": a_budget(),
        "device": SimpleNamespace(uri="local:"),
        "device_info": a_device(),
        "environment": an_environment(),
        "ledger": None,
        "allow_fallback": (),
        "seed": 0,
        "sizes": ({},),
        "fingerprint": "task",
        "progress": lambda stage, detail: None,
        "clock": Clock(),
        "is_out_of_time": False,
        "may_train": True,
    }
    keys = Keys(build_facts(profile=profile, **(facts or {})))
    build = SimpleNamespace(**(known | {"keys": keys} | attributes))
    build.run_target = RunTarget(device=build.device, profile=build.profile, kind=build.device_info.kind)
    build.run_targets = (build.run_target,)
    return build
