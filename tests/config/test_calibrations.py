"""Calibration files: their path, reading and writing, and when one holds."""

import msgspec
import pytest
from builders import a_device, an_environment
from tiny_models import a_quick_profile, write_quick_target

from edgeopt.config.calibrations import calibration_path, find_mismatch, read_calibration, write_calibration
from edgeopt.errors import ConfigError, DataError, WorkspaceError
from edgeopt.records.calibration import Calibration

PROFILE = a_quick_profile()


def a_bare_calibration():
    return Calibration(
        schema="edgeopt/calibration-1", target=PROFILE.name, runtime=PROFILE.runtime,
        made_at="2026-11-24T16:00:00+00:00",
        host=a_device(kind="stand-in"), host_environment=an_environment(), device=a_device(),
        device_environment=an_environment(), clock="cpu", probes=(), sustained=None,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_shipped_targets_calibration_is_in_the_project_and_a_users_own_is_next_to_the_profile(folder):
    assert calibration_path("phone") == folder / "targets" / "phone.calibration.json"
    (folder / "far").mkdir()
    write_quick_target(folder / "far")
    assert calibration_path("far/quick.toml").absolute() == folder / "far" / "quick.calibration.json"
    with pytest.raises(ConfigError, match="no target 'fone'"):
        calibration_path("fone")


def test_a_calibration_survives_writing_and_replaces_an_older_one(folder):
    path = folder / "targets" / "phone.calibration.json"
    assert read_calibration(path) is None
    write_calibration(a_bare_calibration(), path)
    later = msgspec.structs.replace(a_bare_calibration(), made_at="2027-01-01T00:00:00+00:00")
    write_calibration(later, path)
    assert read_calibration(path) == later
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "edgeopt/calibration-9"}', "[1, 2"])
def test_a_broken_file_or_another_schema_is_refused_with_advice(folder, text):
    path = folder / "phone.calibration.json"
    path.write_text(text)
    with pytest.raises(DataError, match="Remove it, or make a new one with `edgeopt targets calibrate`"):
        read_calibration(path)


def test_a_folder_that_cannot_be_made_is_an_error(folder):
    (folder / "file").write_text("in the way")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        write_calibration(a_bare_calibration(), folder / "file" / "phone.calibration.json")


@pytest.mark.parametrize(
    ("changes", "here", "reason"),
    [
        ({"target": "car"}, {}, "it is for the target 'car'"),
        ({}, {"host_id": "other"}, "another host (x86_64-test; this is other)"),
        ({}, {"onnxruntime": "1.33.0"}, "onnxruntime 1.32.0, and this is 1.33.0"),
        ({"runtime": a_quick_profile(threads=4).runtime}, {}, "settings of the target have changed"),
    ],
)
def test_a_calibration_for_something_else_does_not_hold(changes, here, reason):
    host = {"host_id": "x86_64-test", "onnxruntime": "1.32.0"}
    assert find_mismatch(a_bare_calibration(), PROFILE, **host) is None
    other = msgspec.structs.replace(a_bare_calibration(), **changes)
    assert reason in find_mismatch(other, PROFILE, **{**host, **here})
