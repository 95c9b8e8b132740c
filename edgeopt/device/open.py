"""From a URI to a device."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from edgeopt.device.base import Device
from edgeopt.device.local import LocalDevice
from edgeopt.errors import ConfigError, did_you_mean

SCHEMES = ("local",)


def open_device(uri: str) -> Device:
    """Return the device that a URI names: ``local:``, or ``local:?python=PATH`` for another environment.

    Raises:
        ConfigError: no such scheme or option, or no such Python program.
    """
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"no kind of device '{parts.scheme or uri}'{did_you_mean(parts.scheme or uri, SCHEMES)}. "
            f"Known: `local:` (this machine) and `local:?python=PATH` (another Python environment on it)."
        )
    options = dict(parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True))
    unknown = sorted(options.keys() - {"python"})
    if unknown or parts.netloc or parts.path:
        found = unknown[0] if unknown else parts.netloc + parts.path
        raise ConfigError(f"'{uri}': `local:` takes the option `?python=PATH` and nothing else; found '{found}'.")
    if "python" not in options:
        return LocalDevice()
    program = shutil.which(options["python"])
    if program is None:
        raise ConfigError(f"'{uri}': '{options['python']}' is not a program. Give the path of an environment's python.")
    return LocalDevice(Path(program).absolute())
