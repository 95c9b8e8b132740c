import pytest

from edgeopt.config.shapes import parse_shapes
from edgeopt.errors import ConfigError


def test_shapes_of_several_inputs_and_cases_are_read():
    assert parse_shapes(["tokens=1x64,mask=1x64", "serving/x:0=1x3x480x640"], "--shape") == (
        {"tokens": (1, 64), "mask": (1, 64)},
        {"serving/x:0": (1, 3, 480, 640)},
    )


@pytest.mark.parametrize("text", ["1x3x4", "input=", "input=1x", "input=1x0", "input=-1x3", "input=1,3", "=1x3"])
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigError, match=r"--shape '.*' is not of the form NAME=SIZExSIZE"):
        parse_shapes([text], "--shape")
