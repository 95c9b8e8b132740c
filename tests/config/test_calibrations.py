"""Where a calibration is kept, and when it holds."""

import msgspec
import pytest
from builders import a_device, an_environment
from tiny_models import a_quick_profile, write_quick_target

from edgeopt.config.calibrations import calibration_path, read_calibration, why_not, write_calibration
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


def test_a_shipped_targets_calibration_lies_in_the_project_and_ones_own_beside_the_profile(folder):
    assert calibration_path("phone") == folder / "targets" / "phone.calibration.json"
    (folder / "far").mkdir()
    write_quick_target(folder / "far")
    assert calibration_path("far/quick.toml").absolute() == folder / "far" / "quick.calibration.json"
    with pytest.raises(ConfigError, match="no target 'fone'"):
        calibration_path("fone")


def test_it_is_read_as_it_was_written_and_an_older_one_is_replaced_whole(folder):
    path = folder / "targets" / "phone.calibration.json"
    assert read_calibration(path) is None
    write_calibration(a_bare_calibration(), path)
    later = msgspec.structs.replace(a_bare_calibration(), made_at="2027-01-01T00:00:00+00:00")
    write_calibration(later, path)
    assert read_calibration(path) == later
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "edgeopt/calibration-9"}', "[1, 2"])
def test_a_broken_file_or_one_of_another_schema_is_refused_with_what_to_do(folder, text):
    path = folder / "phone.calibration.json"
    path.write_text(text)
    with pytest.raises(DataError, match="Remove it, or make it anew with `edgeopt targets calibrate`"):
        read_calibration(path)


def test_a_folder_that_cannot_be_made_is_said(folder):
    (folder / "file").write_text("in the way")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        write_calibration(a_bare_calibration(), folder / "file" / "phone.calibration.json")


@pytest.mark.parametrize(
    ("changes", "here", "said"),
    [
        ({"target": "car"}, {}, "it is of the target 'car'"),
        ({}, {"host_id": "other"}, "another host (x86_64-test; this is other)"),
        ({}, {"onnxruntime": "1.33.0"}, "onnxruntime 1.32.0 here, and this is 1.33.0"),
        ({"runtime": a_quick_profile(threads=4).runtime}, {}, "settings of the target have changed"),
    ],
)
def test_a_calibration_of_something_else_does_not_hold(changes, here, said):
    place = {"host_id": "x86_64-test", "onnxruntime": "1.32.0"}
    assert why_not(a_bare_calibration(), PROFILE, **place) is None
    assert said in why_not(msgspec.structs.replace(a_bare_calibration(), **changes), PROFILE, **{**place, **here})
