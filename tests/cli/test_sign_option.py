"""`--sign` and `--public-key` without the package that signs: refused with the way out, before any work."""

import sys

import pytest
from tiny_bundles import a_bundle

from edgeopt.cli import main
from edgeopt.cli.build import _without_key_folder


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command as if `model-signing` were not installed."""
    monkeypatch.setitem(sys.modules, "model_signing", None)
    monkeypatch.chdir(tmp_path)

    def runner(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code, " ".join(capsys.readouterr().err.split())

    return runner


def test_a_build_is_refused_before_it_begins(tmp_path, run):
    code, text = run("build", "fashion", "--target", "phone", "--sign", "key.pem")
    assert code == 2
    assert "--sign needs the package model-signing, which cannot be loaded here" in text
    assert "pip install 'edgeopt[sign]'" in text
    assert list(tmp_path.iterdir()) == []


def test_a_check_is_refused_before_it_begins(tmp_path, run):
    code, text = run("check", a_bundle(tmp_path).name, "--target", "./quick.toml", "--public-key", "key.pub")
    assert code == 2
    assert "--public-key needs the package model-signing" in text
    assert "golden" not in text


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("build", "--sign", "/home/a/keys/key.pem", "--quick"), ["build", "--sign", "key.pem", "--quick"]),
        (("build", "--sign=../keys/key.pem", "a/m.onnx"), ["build", "--sign=key.pem", "a/m.onnx"]),
    ],
)
def test_the_command_in_the_manifest_has_no_folder_of_the_key(arguments, shown):
    assert list(_without_key_folder(arguments)) == shown
