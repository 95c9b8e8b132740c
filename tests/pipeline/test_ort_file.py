"""``model.ort`` of a bundle: which form ships, that it computes what the winner does, and why there may be none."""

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from builders import a_budget, a_choice, a_device
from stub_builds import a_stub_build
from tiny_bundles import a_golden
from tiny_models import a_network, a_quick_profile, a_run_target

from edgeopt.bench.outputs import run_arrays
from edgeopt.device.local import LocalDevice
from edgeopt.graph.apply import apply_steps
from edgeopt.pipeline.artifacts.ort_format import ort_file
from edgeopt.records.recipe import Compact, PackWeights, StoreWeights

WIDE = 256
NO_LIMITS = {"max_latency_ms": None, "max_peak_memory_bytes": None, "max_size_bytes": None}
PROFILE = a_quick_profile(ort_format=True)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A network whose weights are stored in 4 bits, and float in each run."""
    folder = tmp_path_factory.mktemp("packed")
    source = a_network(folder / "source.onnx", width=WIDE)
    steps = (StoreWeights(weight_bits=4), PackWeights(), Compact())
    apply_steps(steps, source, folder / "packed.onnx", calibration=None, max_opset=20, max_ir=9)
    return folder / "packed.onnx"


def golden_of(model, *, wrong=0.0):
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)}
    (outputs,) = run_arrays(model, [inputs], a_run_target(), "test")
    return a_golden(inputs, {name: values + np.float32(wrong) for name, values in outputs.items()})


def add(folder, model, *, baseline=None, profile=PROFILE, golden=None, kind="measured", limits=NO_LIMITS):
    """Return the choice with what was found, the files, and the notes that were shown on the way."""
    shown = []
    build = a_stub_build(
        profile=profile,
        budget=a_budget(**limits),
        device=LocalDevice(),
        device_info=a_device(kind=kind),
        calibration=None,
        workspace=SimpleNamespace(artifact=lambda sha256: baseline or model),
        progress=lambda stage, text: shown.append(text) if stage == "note" else None,
    )
    choice, files = ort_file.add_ort_file(build, a_choice(), model, golden or golden_of(model), folder)
    assert tuple(shown) == choice.notes
    return choice, files


def test_a_float_winner_of_a_stand_in_is_written_for_any_processor(tmp_path):
    model = a_network(tmp_path / "m.onnx")
    choice, files = add(tmp_path, model, kind="stand-in")
    assert choice.notes == ()
    assert (choice.ort.weights, choice.ort.level, choice.ort.target_platform) == ("unpacked", "all", "any")
    assert choice.ort.size_bytes == files["model.ort"].stat().st_size
    assert files["required_operators.config"].read_text().count("MatMul") == 1


def test_a_file_that_is_measured_here_is_for_this_processor(tmp_path, monkeypatch):
    model = a_network(tmp_path / "m.onnx")
    for machine, wanted in (("AMD64", "amd64"), ("aarch64", "arm"), ("riscv64", "any")):
        monkeypatch.setattr(ort_file.platform, "machine", lambda machine=machine: machine)
        folder = tmp_path / machine
        folder.mkdir()
        assert add(folder, model)[0].ort.target_platform == wanted


def test_weights_stay_packed_if_that_keeps_the_limits_and_is_not_slower_than_the_baseline(tmp_path, packed):
    slow = a_network(tmp_path / "slow.onnx", width=2048, layers=4)
    choice, files = add(tmp_path, packed, baseline=slow)
    assert choice.ort.weights == "stored", choice.notes
    assert "BitShift" in files["required_operators.config"].read_text()
    assert choice.ort.size_bytes < 0.5 * (tmp_path / "unpacked" / "model.ort").stat().st_size
    assert choice.notes == ()


def test_weights_are_unpacked_if_doing_that_in_each_run_is_slower_than_the_baseline(tmp_path, packed):
    choice, files = add(tmp_path, packed, baseline=a_network(tmp_path / "fast.onnx", width=8))
    assert choice.ort.weights == "unpacked"
    assert "BitShift" not in files["required_operators.config"].read_text()
    (note,) = choice.notes
    assert "but unpacking them in each run would take" in note
    assert note.endswith("× the time of the baseline.")


def test_weights_are_unpacked_if_a_limit_would_be_missed_and_the_size_is_reported(tmp_path, packed):
    runtime = 1_000_000
    size = packed.stat().st_size + 1000 + runtime
    limits = NO_LIMITS | {"max_latency_ms": 1e-4, "max_size_bytes": size, "runtime_size_bytes": runtime}
    choice, _ = add(tmp_path, packed, limits=limits)
    assert choice.ort.weights == "unpacked"
    assert "in each run would miss the limit on latency and size." in choice.notes[0]
    assert "MB, with the runtime's 1.00 MB, but the size limit, which was judged on model.onnx, is" in choice.notes[1]


@pytest.mark.parametrize("reason", ["another output", "no golden arrays", "another provider", "no model"])
def test_a_file_that_cannot_be_made_or_is_wrong_is_left_out_with_the_reason(tmp_path, reason):
    model = a_network(tmp_path / "m.onnx")
    golden = golden_of(model)
    changes = {"golden": golden}
    wanted = {
        "another output": "output 'y' of the converted file is off by",
        "no golden arrays": "there are no golden outputs to check it with.",
        "another provider": "the target phone names CUDAExecutionProvider. Leave out --ort-format",
        "no model": "its process failed: ",
    }[reason]
    if reason == "another output":
        changes["golden"] = golden_of(model, wrong=1.0)
    elif reason == "no golden arrays":
        changes["golden"] = a_golden({}, {})
    elif reason == "another provider":
        changes["profile"] = msgspec.structs.replace(PROFILE, providers=("CUDAExecutionProvider",))
    else:
        model.write_bytes(b"no model")
    choice, files = add(tmp_path, model, **changes)
    assert (choice.ort, files) == (None, {})
    (note,) = choice.notes
    assert note.startswith("The bundle has no model.ort: ")
    assert wanted in note


def test_nothing_is_made_for_a_target_that_does_not_ask_for_it(tmp_path):
    model = a_network(tmp_path / "m.onnx")
    choice, files = add(tmp_path, model, profile=a_quick_profile())
    assert (choice.ort, files, choice.notes) == (None, {}, ())
    assert not (tmp_path / "unpacked").exists()
