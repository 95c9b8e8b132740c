"""The order in which one command builds for several targets."""

import json

import msgspec
from builders import a_profile

from edgeopt.cli.build_targets import build_targets
from edgeopt.errors import StepError


def test_the_target_with_the_largest_step_of_channels_comes_first_and_results_stay_in_the_order_asked_for(tmp_path):
    """Widths in multiples of 16 suit a target whose step is 8, and not the other way round."""
    steps, built = {"phone": 8, "server": 16, "car": 8}, []
    targets = {name: msgspec.structs.replace(a_profile(), name=name, channel_step=step) for name, step in steps.items()}

    def fail(target, profile, out, progress):
        built.append(target)
        raise StepError("export", "no network")

    code = build_targets("tiny", targets, tmp_path / "out", fail, lambda choice: 0, tmp_path / "stop", lambda *_: None)
    assert code == 1
    assert built == ["server", "phone", "car"]
    results = json.loads((tmp_path / "out" / "targets.json").read_text())["results"]
    assert [one["target"] for one in results] == ["phone", "server", "car"]
