"""`edgeopt build --sign`: the bundle of a real build is signed, and a wrong key ends the command before it begins."""

import json

import pytest
from building import TASK, choice_of, edgeopt, write_target
from key_files import write_keys


def test_the_bundle_of_a_build_is_signed_and_verified(tmp_path):
    write_keys(tmp_path)
    write_target(tmp_path / "tiny.toml", precisions='["int8", "fp32"]')
    key = str(tmp_path / "key.pem")
    done = edgeopt(tmp_path, "build", TASK, "--target", "tiny.toml", "--quick", "--no-train", "--sign", key)
    assert done.returncode == 0, done.stdout + done.stderr
    command = json.loads((tmp_path / "edgeopt-out" / "manifest.json").read_text())["command"]
    assert command.endswith("--sign key.pem")
    done = edgeopt(tmp_path, "check", "edgeopt-out", "--target", "tiny.toml", "--public-key", "key.pub", "--json")
    result = json.loads(done.stdout)
    assert {"kind": "file", "name": "model.sig", "status": "passed"}.items() <= result["findings"][1].items()
    (model,) = json.loads((tmp_path / "edgeopt-out" / "sbom.json").read_text())["metadata"]["component"]["hashes"]
    assert model["content"] == choice_of(tmp_path)["winner"]["sha256"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"kind": "RSA"}, "is a key of another kind"), ({"password": "open"}, "is protected by a password")],
)
def test_a_key_that_cannot_sign_ends_the_build_before_it_begins(tmp_path, changes, text):
    write_keys(tmp_path, **changes)
    done = edgeopt(tmp_path, "build", TASK, "--target", "phone", "--sign", "key.pem")
    assert done.returncode == 2
    assert text in " ".join(done.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key.pem", "key.pub"]
