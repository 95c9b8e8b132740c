"""`edgeopt check --public-key` and `--sign`, and what `edgeopt build --sign` refuses before it begins."""

import json
import sys
from pathlib import Path

import pytest
from key_files import write_keys
from test_check import check, lines
from tiny_bundles import a_bundle

from edgeopt.bundle.signature import open_private_key, open_public_key, sign_bundle
from edgeopt.config.profiles import load_profile
from edgeopt.pipeline.verify import runtimes


def test_a_bundle_that_passes_is_signed_and_then_verified(tmp_path):
    write_keys(tmp_path)
    bundle = a_bundle(tmp_path)
    done = check(bundle, "--sign", "key.pem")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "out is signed with key.pem." in done.stderr
    done = check(bundle, "--public-key", "key.pub")
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines(done)["model.sig"] == "passed"
    assert "is by the key key.pub, for every file" in done.stdout


def test_a_bundle_that_misses_a_limit_is_not_signed(tmp_path):
    write_keys(tmp_path)
    bundle = a_bundle(tmp_path, wrong=1e6)
    done = check(bundle, "--sign", "key.pem")
    assert done.returncode == 3
    assert "out is not signed, because it does not pass every check." in done.stderr
    assert not (bundle / "model.sig").exists()


@pytest.mark.parametrize("signed_by", [None, "other"])
def test_a_missing_signature_and_one_by_another_key_end_with_2_and_nothing_is_run(tmp_path, signed_by):
    write_keys(tmp_path)
    bundle = a_bundle(tmp_path)
    if signed_by:
        sign_bundle(bundle, open_private_key(write_keys(tmp_path, signed_by)[0]))
    done = check(bundle, "--public-key", "key.pub")
    assert done.returncode == 2, done.stdout + done.stderr
    assert lines(done) == {"all": "passed", "model.sig": "bad"}
    assert ("by another key than key.pub" if signed_by else "the bundle is not signed") in done.stdout


@pytest.mark.parametrize("spoils", [False, True])
def test_another_runtime_runs_a_bundle_only_if_its_signature_holds(tmp_path, monkeypatch, spoils):
    bundle = a_bundle(tmp_path)
    private, public = write_keys(tmp_path)
    sign_bundle(bundle, open_private_key(private))
    if spoils:
        manifest = json.loads((bundle / "manifest.json").read_text())
        (bundle / "manifest.json").write_text(json.dumps(manifest | {"licence": "another"}))
    asked = []
    monkeypatch.setattr(runtimes, "find_runtime", lambda version, _: asked.append(version) or Path(sys.executable))
    profile = load_profile(str(tmp_path / "quick.toml"))
    result = runtimes.check_in_runtime(bundle, "1.2.3", profile, lambda _: None, key=open_public_key(public))
    assert (result.status, asked) == (("bad", []) if spoils else ("passed", ["1.2.3"]))


def test_the_command_names_a_bad_signature_for_each_runtime_and_installs_none(tmp_path):
    write_keys(tmp_path)
    done = check(a_bundle(tmp_path), "--public-key", "key.pub", "--runtime", "0.0.1", "--json")
    assert done.returncode == 2, done.stdout + done.stderr
    assert [result["status"] for result in json.loads(done.stdout)["results"]] == ["bad", "bad"]
    assert "installing" not in done.stderr


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "more"])
def test_a_file_that_was_changed_or_added_ends_with_2(tmp_path, name):
    bundle = a_bundle(tmp_path)
    sign_bundle(bundle, open_private_key(write_keys(tmp_path)[0]))
    with (bundle / name).open("ab") as file:
        file.write(b"\n")
    done = check(bundle, "--public-key", "key.pub")
    assert done.returncode == 2
    assert lines(done)["model.sig"] == "bad"


def test_a_signature_is_mentioned_if_no_key_is_named(tmp_path):
    bundle = a_bundle(tmp_path)
    sign_bundle(bundle, open_private_key(write_keys(tmp_path)[0]))
    done = check(bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines(done)["model.sig"] == "note"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--public-key", "none.pub"), "--public-key none.pub cannot be read: No such file or directory."),
        (("--public-key", "key.pem"), "--public-key key.pem is not a public key that can be read."),
        (("--sign", "key.pub"), "--sign key.pub is not a private key that can be read."),
    ],
)
def test_a_wrong_key_is_bad_input_and_nothing_runs(tmp_path, arguments, text):
    write_keys(tmp_path)
    done = check(a_bundle(tmp_path), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in " ".join(done.stderr.split())
    assert "golden" not in done.stderr
