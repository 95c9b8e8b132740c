"""The options for channels that stay: repeated, with their form checked."""

import click
import pytest
from click.testing import CliRunner

from edgeopt.cli.options import channel_options


@click.command()
@channel_options
def show(width_rules):
    click.echo(f"{width_rules.keep} {width_rules.min_widths}")


def test_globs_may_be_repeated():
    done = CliRunner().invoke(show, ["--keep", "head.*", "--keep", "a=b", "--min-width", "stem.*=16"])
    assert done.output == "('head.*', 'a=b') {'stem.*': 16}\n"
    assert CliRunner().invoke(show, []).output == "() {}\n"


@pytest.mark.parametrize("given", ["stem", "=16", "stem=", "stem=many", "stem=-1"])
def test_a_least_width_has_a_glob_and_a_number(given):
    done = CliRunner().invoke(show, ["--min-width", given])
    assert done.exit_code == 2
    assert f"'{given}' is not GLOB=N, such as 'stem.*=16'." in done.output
