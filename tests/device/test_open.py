import sys

import pytest

from edgeopt.device.open import open_device
from edgeopt.errors import ConfigError


def test_local_is_this_machine():
    assert open_device("local:").uri == "local:"


def test_local_can_name_another_python():
    assert open_device(f"local:?python={sys.executable}").uri == f"local:?python={sys.executable}"


def test_a_plus_in_a_path_stays_one(tmp_path):
    program = tmp_path / "a+b"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert open_device(f"local:?python={program}").uri.endswith("a+b")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("lokal:", "did you mean 'local'"),
        ("phone", "unknown kind of device 'phone'.*Known: `local:`"),
        ("local:?pyton=x", "no option 'pyton'; known: .python="),
        ("local://host", "found '//host'"),
        ("ssh:", "an ssh device is"),
        ("ssh://", "an ssh device is"),
        ("ssh://pi@", "an ssh device is"),
        ("ssh://-oProxyCommand=x", "an ssh device is"),
        ("ssh://-l@host", "an ssh device is"),
        ("ssh://pi:secret@host", "an ssh device is"),
        ("ssh://host:70000", "an ssh device is"),
        ("ssh://host/path", "an ssh device is"),
        ("ssh://host?pyton=x", "no option 'pyton'"),
        ("ssh://host?python=", "python= is empty"),
        ("local:?python=/nowhere/python", "'/nowhere/python' is not a program"),
    ],
)
def test_a_wrong_uri_is_an_error_that_says_how_to_write_it(uri, message):
    with pytest.raises(ConfigError, match=message):
        open_device(uri)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ssh://Board", "Board"),
        ("ssh://pi@10.0.0.7:2222", "-l pi -p 2222 10.0.0.7"),
        ("ssh://pi@[fe80::1%eth0]:22", "-l pi -p 22 fe80::1%eth0"),
    ],
)
def test_an_ssh_address_keeps_its_case_and_its_parts(uri, words):
    address = open_device(uri)._address
    assert " ".join([*address.options(), address.host]) == words
