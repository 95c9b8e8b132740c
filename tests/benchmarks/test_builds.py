"""Builds that benchmarks run as a user does."""

import click
import pytest

from benchmarks.builds import run_build

PROGRAM = "import json, os, sys; print(json.dumps({'words': sys.argv[1:], 'data': os.environ['EDGEOPT_DATA']}))"


def test_a_build_runs_in_its_folder_and_finds_the_data_of_the_benchmark(tmp_path, monkeypatch):
    (tmp_path / "edgeopt").mkdir()
    (tmp_path / "edgeopt" / "__init__.py").touch()
    (tmp_path / "edgeopt" / "__main__.py").write_text(PROGRAM)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEOPT_DATA", "data")
    build = run_build(["mine", "--quick"], tmp_path / "work", {"PYTHONPATH": str(tmp_path)})
    assert build.document == {"words": ["build", "mine", "--quick", "--json"], "data": str(tmp_path / "data")}
    assert build.seconds > 0


def test_a_build_that_fails_ends_the_benchmark(tmp_path):
    with pytest.raises(click.ClickException, match=r"edgeopt build missing\.onnx --json ended with code 2"):
        run_build(["missing.onnx"], tmp_path)
