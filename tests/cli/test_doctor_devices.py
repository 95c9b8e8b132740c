"""The kinds of device that `edgeopt doctor` finds, with programs that a test puts in PATH."""

import pytest

from edgeopt.cli.doctor_devices import find_routes

OUTPUTS = {
    "ssh": ("OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.22 25 Aug 2026", "stderr"),
    "adb": ("Android Debug Bridge version 1.0.41\nVersion 29.0.6-debian", "stdout"),
    "openssl": ("OpenSSL 3.0.22 25 Aug 2026 (Library: OpenSSL 3.0.22 25 Aug 2026)", "stdout"),
    "qemu-aarch64": ("qemu-aarch64 version 10.0.2 (Debian 1:10.0.2)", "stdout"),
    "npm": ("10.8.2", "stdout"),
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that puts programs in an empty PATH, each printing its version, and then finds the devices."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def find(**outputs: tuple[str, str]):
        for name, (text, stream) in outputs.items():
            program = tmp_path / name.replace("_", "-")
            program.write_text(f"#!/bin/sh\necho '{text}'{' >&2' if stream == 'stderr' else ''}\n")
            program.chmod(0o755)
        return {route.kind: route for route in find_routes()}

    return find


def test_a_kind_whose_program_is_installed_is_ready_with_its_version_and_the_option_to_give(machine):
    found = machine(**{name.replace("-", "_"): output for name, output in OUTPUTS.items()})
    assert list(found) == ["local", "ssh", "adb", "browser", "qemu"]
    assert all(route.ready for route in found.values())
    versions = [route.version for route in found.values()]
    assert versions == [None, "ssh 9.2p1", "adb 1.0.41", "openssl 3.0.22", "qemu-aarch64 10.0.2"]
    assert all(route.advice.startswith("--device ") for route in found.values())
    assert "missing" not in found["browser"].advice


def test_a_missing_program_is_reported_with_how_to_get_it(machine):
    found = machine()
    assert [route.kind for route in found.values() if not route.ready] == ["ssh", "adb", "qemu"]
    assert "apt-get install openssh-client" in found["ssh"].advice
    assert "apt-get install adb" in found["adb"].advice
    assert found["qemu"].advice == "install qemu-user 10.0 or newer"
    assert "npm, which is missing" in found["browser"].advice
    assert "install openssl" in found["browser"].advice


@pytest.mark.parametrize(("version", "ready"), [("7.2.22", False), ("9.2.0", False), ("10.0.0", True), ("11.1", True)])
def test_a_qemu_that_crashes_in_onnx_runtime_is_not_ready(machine, version, ready):
    qemu = machine(qemu_arm_static=(f"qemu-arm version {version} (Debian)", "stdout"))["qemu"]
    assert qemu.ready == ready
    assert ready or f"qemu-arm-static {version} crashes in ONNX Runtime" in qemu.advice


def test_a_program_that_does_not_print_its_version_still_counts_as_installed(machine):
    found = machine(ssh=("", "stdout"), adb=("hello", "stdout"))
    assert (found["ssh"].ready, found["ssh"].version) == (True, "ssh")
    assert (found["adb"].ready, found["adb"].version) == (True, "adb")
