"""The options for channels that stay and for rows that go: repeated, with their form checked."""

import click
import pytest
from click.testing import CliRunner

from edgeopt.cli.options import channel_options, unseen_row_options


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


@click.command()
@unseen_row_options
def show_rows(unseen_rows):
    click.echo(f"{unseen_rows.drop} {unseen_rows.unknown_ids}")


def test_unknown_ids_are_those_of_an_input():
    done = CliRunner().invoke(show_rows, ["--drop-unseen-rows", "--unknown-id", "tokens=100", "--unknown-id", "a=b=1"])
    assert done.output == "True {'tokens': 100, 'a=b': 1}\n"
    assert CliRunner().invoke(show_rows, []).output == "False {}\n"
    assert "'100' is not INPUT=N" in CliRunner().invoke(show_rows, ["--unknown-id", "100"]).output
