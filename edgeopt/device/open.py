"""A URI to a device, and how far its times count for a target."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import parse_qsl

from edgeopt.device.adb import AdbDevice
from edgeopt.device.base import Device
from edgeopt.device.browser import RUNTIME_FILES, BrowserDevice, PageAddress, is_loopback
from edgeopt.device.emulated import EmulatedDevice
from edgeopt.device.local import LocalDevice
from edgeopt.device.pool import DevicePool
from edgeopt.device.ssh import SshDevice
from edgeopt.device.ssh_connection import Address
from edgeopt.errors import ConfigError, did_you_mean
from edgeopt.records.measurement import DeviceKind
from edgeopt.records.profile import Profile

KNOWN_DEVICES = (
    "`local:` (this machine), `local:?python=PATH` (this machine with another Python environment), "
    "`ssh://[user@]host[:port][?python=PATH]` (another machine), "
    "`adb:[serial]?runner=PATH&library=PATH` (an Android phone), "
    "`browser:[address[:port]]?runtime=FOLDER[&adb=SERIAL]` (a web browser) and "
    "`qemu:[cpu]?runner=PATH&library=PATH` (an emulated processor, for `edgeopt check`)"
)


def open_device(uri: str) -> Device:
    """Return the device that a URI names; it does not connect yet.

    Raises:
        ConfigError: the scheme, location or option does not exist, or the Python program is not on this machine.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        raise ConfigError(f"unknown kind of device '{scheme}'{did_you_mean(scheme, SCHEMES)}. Known: {KNOWN_DEVICES}.")
    location, _, query = rest.partition("?")
    options = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))
    return SCHEMES[scheme](uri, location, options)


def open_devices(uris: Sequence[str]) -> Device:
    """Return the device that a URI names, or several as a pool.

    Raises:
        ConfigError: see ``open_device``; or one is named twice, or they are of several kinds.
    """
    if len(set(uris)) < len(uris):
        raise ConfigError(f"--device: one is named twice: {', '.join(uris)}. Name each device once.")
    devices = [open_device(uri) for uri in uris]
    if len({uri.partition(":")[0] for uri in uris}) > 1:  # the times of one may prove what those of another do not
        raise ConfigError(
            f"--device: {', '.join(uris)} are of different kinds. Only devices of one kind measure side by side: name "
            "those of one, or build for each by itself."
        )
    return devices[0] if len(devices) == 1 else DevicePool(devices)


def _check_options(uri: str, options: dict[str, str], known: set[str]) -> None:
    for name in options.keys() - known:
        raise ConfigError(f"'{uri}': there is no option '{name}'; known: {', '.join(f'?{word}=' for word in known)}.")


def _local(uri: str, location: str, options: dict[str, str]) -> Device:
    if location:
        raise ConfigError(f"'{uri}': `local:` takes the option `?python=PATH` and nothing else; found '{location}'.")
    _check_options(uri, options, {"python"})
    if "python" not in options:
        return LocalDevice()
    program = shutil.which(options["python"])
    if program is None:
        raise ConfigError(f"'{uri}': '{options['python']}' is not a program. Give the path to an environment's python.")
    return LocalDevice(Path(program).absolute())


SSH_ADDRESS = re.compile(
    r"//(?:(?P<user>[^@/:-][^@/:]*)@)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^@/:\[\]\s-][^@/:\[\]\s]*)(?::(?P<port>\d+))?/?"
)
"""Neither user nor host may look like an option of ``ssh``."""


def _ssh(uri: str, location: str, options: dict[str, str]) -> Device:
    _check_options(uri, options, {"python"})
    match = SSH_ADDRESS.fullmatch(location)
    port = int(match["port"]) if match and match["port"] else None
    if match is None or (port is not None and not 0 < port < 65536):
        raise ConfigError(
            f"'{uri}': an ssh device is `ssh://[user@]host[:port][?python=PATH]`, as in `ssh://pi@10.0.0.7`."
        )
    if options.get("python") == "":
        raise ConfigError(f"'{uri}': ?python= is empty. Leave it out, and edgeopt looks for a Python with onnxruntime.")
    return SshDevice(uri, Address(match["host"].strip("[]"), match["user"], port), options.get("python"))


def device_kind(uri: str, profile: Profile) -> DeviceKind:
    """Return how far a device counts for a target: this machine may only stand in, an emulator's times mean nothing."""
    if uri.startswith("qemu:"):
        return "emulated"
    return "stand-in" if profile.stand_in and uri.startswith("local:") else "measured"


def ranking_kind(uri: str, profile: Profile) -> DeviceKind:
    """Return how far a device counts for a target, for a command that ranks files by their times.

    Raises:
        ConfigError: the device is an emulator.
    """
    kind = device_kind(uri, profile)
    if kind == "emulated":
        raise ConfigError(
            f"'{uri}' emulates a processor: times and memory there say nothing about a real one, so files can't be "
            "ranked by them. `edgeopt check BUNDLE --device ...` compares a file's outputs there."
        )
    return kind


def device_role(uri: str, profile: Profile, *, estimated: bool) -> tuple[DeviceKind, Profile]:
    """Return what a device is to a target, and the profile with which the target's sessions run there.

    Args:
        uri: Of the device.
        profile: The target's.
        estimated: Whether the target's latency is estimated from a calibration, on this host.

    Raises:
        ConfigError: the device is an emulator, which cannot time anything.
    """
    if estimated:
        return "estimated", profile.on_host
    kind = ranking_kind(uri, profile)
    return kind, profile.on_stand_in if kind == "stand-in" else profile


def _adb(uri: str, location: str, options: dict[str, str]) -> Device:
    _check_options(uri, options, {"runner", "library"})
    if location.startswith("-"):
        raise ConfigError(f"'{uri}': '{location}' is not a serial number; `adb devices` lists them.")
    return AdbDevice(uri, location, *_native_files(uri, options))


def _native_files(uri: str, options: dict[str, str]) -> tuple[Path, Path]:
    missing = [name for name in ("runner", "library") if not Path(options.get(name, "")).is_file()]
    if missing:
        scheme = uri.partition(":")[0]
        raise ConfigError(
            f"'{uri}': this kind of device needs two files built for its processor, as in "
            f"`{scheme}:?runner=PATH&library=PATH`; ?{missing[0]}= is not a file. `tools/build_runner.py --help` "
            "shows how to make them."
        )
    return Path(options["runner"]), Path(options["library"])


def _qemu(uri: str, location: str, options: dict[str, str]) -> Device:
    _check_options(uri, options, {"runner", "library", "root"})
    if location.startswith("-"):
        raise ConfigError(f"'{uri}': '{location}' is not a processor; `qemu-aarch64 -cpu help` lists them.")
    root = Path(options["root"]) if "root" in options else None
    return EmulatedDevice(uri, location, *_native_files(uri, options), root)


def _browser(uri: str, address: str, options: dict[str, str]) -> Device:
    _check_options(uri, options, {"runtime", "adb", "tls"})
    match = re.fullmatch(r"(?P<host>\[[0-9A-Fa-f:]+\]|[^\[\]:/\s]*)(?::(?P<port>\d{1,5}))?", address)
    if match is None:
        raise ConfigError(f"'{uri}': a browser is `browser:` (on this machine) or `browser:ADDRESS[:PORT]`.")
    runtime = Path(options.get("runtime", ""))
    missing = [name for name in RUNTIME_FILES if "runtime" not in options or not (runtime / name).is_file()]
    if missing:
        raise ConfigError(
            f"'{uri}': a browser needs three files of onnxruntime-web, as in `browser:?runtime=FOLDER`; {missing[0]} "
            "is missing. `tools/fetch_web_runtime.py --out FOLDER` fetches them."
        )
    if options.get("tls", "no") != "no":
        raise ConfigError(f"'{uri}': ?tls= can only be `no`; without it, every address except loopback uses HTTPS.")
    host, phone = match["host"].strip("[]") or "127.0.0.1", options.get("adb")
    if phone is not None and (not is_loopback(host) or phone.startswith("-")):
        raise ConfigError(
            f"'{uri}': ?adb=SERIAL lets a phone on a cable reach this machine's loopback: leave the address out, and "
            "name the phone as `adb devices` lists it."
        )
    page = PageAddress(host, int(match["port"] or 0), "tls" not in options, phone)
    return BrowserDevice(uri, page, runtime)


SCHEMES: dict[str, Callable[[str, str, dict[str, str]], Device]] = {
    "local": _local,
    "ssh": _ssh,
    "adb": _adb,
    "browser": _browser,
    "qemu": _qemu,
}
