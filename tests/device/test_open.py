import sys

import pytest

from edgeopt.device.open import open_device
from edgeopt.errors import ConfigError


def test_local_is_this_machine():
    assert open_device("local:").uri == "local:"


def test_another_python_can_be_named():
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
        ("phone", "no kind of device 'phone'.*Known: `local:`"),
        ("local:?pyton=x", "found 'pyton'"),
        ("local://host", "found 'host'"),
        ("local:?python=/nowhere/python", "'/nowhere/python' is not a program"),
    ],
)
def test_what_cannot_be_opened_is_an_error_that_says_what_can(uri, message):
    with pytest.raises(ConfigError, match=message):
        open_device(uri)
