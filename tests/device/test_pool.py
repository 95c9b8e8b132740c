"""Devices that measure side by side, and the proof that they are alike."""

import threading
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from stub_builds import a_stub_build
from tiny_models import a_network, a_quick_profile, a_run_target

from edgeopt.bench.alike import check_alike
from edgeopt.device.base import WorkerRequest
from edgeopt.device.local import LocalDevice
from edgeopt.device.open import open_devices
from edgeopt.device.pool import DevicePool, leased
from edgeopt.errors import ConfigError
from edgeopt.pipeline.artifacts.evaluator import Evaluator
from edgeopt.store.ledger import Ledger
from edgeopt.store.workspace import Workspace

DESCRIPTION = LocalDevice().describe()[1]


class Board:
    """A machine that all devices known to it share: each run takes as many times longer as they are."""

    def __init__(self):
        self.known = set()
        self.meet = threading.Barrier(1)
        """Where runs wait for one another."""


class Phone:
    """A device whose runs take a given time."""

    def __init__(self, uri, ms=1.0, board=None, name="phone-8", onnxruntime="1.32.0"):
        self.uri, self.ms, self.board = uri, ms, board or Board()
        self.described = name, msgspec.structs.replace(DESCRIPTION, onnxruntime=onnxruntime)
        self.asked = []

    def describe(self):
        return self.described

    def run(self, request, timeout_seconds, variables):
        self.asked.append(Path(request.model).name)
        if request.mode == "memory":
            return {"supported": False}
        self.board.meet.wait(20)
        self.board.known.add(self.uri)
        ns = int(self.ms * 1e6 * len(self.board.known))
        return {
            "wall_ns": [ns] * 200, "cpu_ns": [ns] * 200, "warmup_runs": 3, "load_ns": 10, "involuntary_switches": 0,
            "pressure_ratio": None, "nodes": {"CPUExecutionProvider": 1},
        }  # fmt: skip

    def start(self):
        return self.uri


def a_pool(*phones):
    return DevicePool(phones)


def test_devices_of_equal_speed_are_alike(tmp_path):
    pool = a_pool(Phone("adb:a"), Phone("adb:b", 1.05))
    check_alike(a_network(tmp_path / "m.onnx"), a_run_target(device=pool))
    assert [len(phone.asked) > 0 for phone in pool.devices] == [True, True]


def test_a_slower_device_is_refused_with_the_times(tmp_path):
    pool = a_pool(Phone("adb:a"), Phone("adb:b", 1.3))
    with pytest.raises(ConfigError, match=r"not alike.*1 ms on adb:a alone.*1\.3 ms on adb:b"):
        check_alike(a_network(tmp_path / "m.onnx"), a_run_target(device=pool))


def test_two_names_of_one_machine_are_found_out(tmp_path):
    board = Board()
    pool = a_pool(Phone("ssh://a", board=board), Phone("ssh://same", board=board))
    with pytest.raises(ConfigError, match="or they share a machine: the baseline takes 1 ms on ssh://a alone"):
        check_alike(a_network(tmp_path / "m.onnx"), a_run_target(device=pool))


def test_one_device_needs_no_proof(tmp_path):
    phone = Phone("adb:a")
    check_alike(a_network(tmp_path / "m.onnx"), a_run_target(device=phone))
    assert phone.asked == []


@pytest.mark.parametrize("other", [{"name": "phone-9"}, {"onnxruntime": "1.17.0"}])
def test_other_hardware_or_another_runtime_is_refused(other):
    with pytest.raises(ConfigError, match=r"adb:a is phone-8 .* and adb:b is .*Only devices that are alike"):
        a_pool(Phone("adb:a"), Phone("adb:b", **other)).describe()


def test_a_device_that_is_named_twice_is_refused():
    with pytest.raises(ConfigError, match="one is named twice"):
        open_devices(["local:", "local:"])
    assert open_devices(["local:"]).uri == "local:"
    assert open_devices(["ssh://a", "ssh://b"]).uri == "ssh://a, ssh://b"


@pytest.mark.parametrize("uris", [("ssh://a", "local:"), ("local:", "ssh://a")])
def test_devices_of_several_kinds_are_refused_since_one_may_only_stand_in_for_the_target(uris):
    with pytest.raises(ConfigError, match=r"of different kinds\. Only devices of one kind measure side by side"):
        open_devices(uris)


def test_a_device_is_lent_to_one_at_a_time_and_an_ab_stays_on_the_first():
    pool = a_pool(Phone("adb:a"), Phone("adb:b"))
    with leased(pool) as one, leased(pool) as other:
        assert {one.uri, other.uri} == {"adb:a", "adb:b"}
    assert pool.start() == "adb:a"
    alone = Phone("adb:c")
    with leased(alone) as same:
        assert same is alone


def test_work_goes_to_a_free_device():
    pool = a_pool(Phone("adb:a"), Phone("adb:b"))
    with leased(pool) as taken:
        pool.run(WorkerRequest(mode="memory", model="m.onnx"), 1.0, {})
    free = next(phone for phone in pool.devices if phone is not taken)
    assert (taken.asked, free.asked) == ([], ["m.onnx"])


def test_files_are_measured_side_by_side_once_each_and_the_record_names_the_device(tmp_path):
    pool = a_pool(Phone("adb:a"), Phone("adb:b"))
    both = threading.Barrier(2)  # passes only if two files are measured at a time
    for phone in pool.devices:
        phone.board.meet = both
    workspace, ledger = Workspace(tmp_path), Ledger(tmp_path / "ledger.sqlite")
    workspace.folder("artifacts").mkdir(parents=True)
    for name in ("m1", "m2"):
        a_network(tmp_path / "artifacts" / f"{name}.onnx", width=16 if name == "m1" else 24)
    profile = a_quick_profile()
    build = a_stub_build(device=pool, ledger=ledger, workspace=workspace, profile=profile, data=SimpleNamespace())
    build.run_targets = (a_run_target(profile, pool),)
    build.calibration = None
    evaluator = Evaluator(build, "m1")
    evaluator.measure_side_by_side(["m1", "m2"])
    asked = [len(phone.asked) for phone in pool.devices]
    found = [evaluator.measurement(name) for name in ("m1", "m2")]
    assert {one.device.uri for one in found} == {"adb:a", "adb:b"}
    assert [len(phone.asked) for phone in pool.devices] == asked
    assert np.median(found[0].timings[0].wall_ns) > 0
    ledger.close()
