"""The signature of a bundle: it holds for the files that were signed, and for no others."""

import base64
import json
import shutil
import subprocess
import sys

import pytest
from key_files import write_keys

from edgeopt.bundle.manifest import find_changed_files, read_manifest
from edgeopt.bundle.signature import find_signature_fault, open_private_key, open_public_key, sign_bundle
from edgeopt.errors import DataError, InputError


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path)


@pytest.fixture
def signed(tmp_path, write, keys):
    """Write a bundle and sign it."""
    write(tmp_path / "out", key=open_private_key(keys[0]))
    return tmp_path / "out"


def fault(bundle, public):
    return find_signature_fault(bundle, read_manifest(bundle), open_public_key(public))


def signed_statement(bundle):
    envelope = json.loads((bundle / "model.sig").read_text())["dsseEnvelope"]
    return json.loads(base64.b64decode(envelope["payload"]))


def signed_names(bundle):
    return {resource["name"] for resource in signed_statement(bundle)["predicate"]["resources"]}


def test_the_signature_covers_every_file_of_the_bundle_except_itself(signed, keys):
    names = signed_names(signed)
    found = {path.relative_to(signed).as_posix() for path in signed.rglob("*") if path.is_file()}
    assert names == found - {"model.sig"}
    assert {"model.onnx", "manifest.json", "sbom.json", "samples/python/run.py"} <= names
    assert "model.sig" not in read_manifest(signed).files
    assert fault(signed, keys[1]) is None


def test_the_signature_names_the_model_and_not_the_folder_that_it_was_signed_in(signed):
    (subject,) = signed_statement(signed)["subject"]
    (component,) = [json.loads((signed / "sbom.json").read_text())["metadata"]["component"]]
    assert subject["name"] == component["name"] == read_manifest(signed).task.rpartition("/")[2]


def test_the_program_of_the_format_verifies_a_bundle_too(signed, keys):
    options = ["--signature", signed / "model.sig", "--public_key", keys[1]]
    command = [sys.executable, "-m", "model_signing", "verify", "key", signed, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (signed / "model.onnx").write_bytes(b"x")
    assert subprocess.run(command, capture_output=True, timeout=120).returncode != 0


def test_a_key_of_another_allowed_curve_signs_too(tmp_path, write):
    private, public = write_keys(tmp_path, "long", kind="P-521")
    write(tmp_path / "out", key=open_private_key(private))
    assert fault(tmp_path / "out", public) is None


def change_manifest(bundle):
    """Change a fact of the manifest: every hash in it still holds."""
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace("edgeopt build", "edgeopt built"))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (change_manifest, "does not hold: manifest.json changed after signing"),
        (lambda bundle: (bundle / "model.onnx").write_bytes(b"x"), "does not hold: model.onnx changed after signing"),
        (lambda bundle: (bundle / "more").write_text(""), "does not hold: more changed after signing"),
        (lambda bundle: (bundle / ".git").mkdir() or (bundle / ".git" / "x").write_text(""), ".git/x"),
        (
            lambda bundle: (bundle / "samples" / "python" / "run.py").write_text("x"),
            "does not hold: samples/python/run.py",
        ),
        (lambda bundle: (bundle / "report.html").unlink(), "does not hold: report.html changed after signing"),
        (lambda bundle: (bundle / "model.sig").unlink(), "is missing: the bundle is not signed"),
        (lambda bundle: (bundle / "model.sig").write_text("{}"), "cannot be read as a signature"),
        (lambda bundle: (bundle / "model.sig").write_text("[1]"), "cannot be read as a signature"),
        (lambda bundle: (bundle / "model.sig").write_bytes(b"\xff"), "cannot be read as a signature"),
    ],
)
def test_a_change_after_signing_is_found_and_named(signed, keys, spoil, text):
    spoil(signed)
    assert text in fault(signed, keys[1])


def test_a_signature_by_another_key_does_not_count(tmp_path, signed):
    _, other = write_keys(tmp_path, "other")
    assert fault(signed, other) == f"is by another key than {other}"


def test_a_signature_whose_content_was_edited_does_not_count(signed, keys):
    path = signed / "model.sig"
    document = json.loads(path.read_text())
    statement = base64.b64decode(document["dsseEnvelope"]["payload"]).replace(b"report.html", b"report.htm_")
    document["dsseEnvelope"]["payload"] = base64.b64encode(statement).decode()
    path.write_text(json.dumps(document))
    assert fault(signed, keys[1]) == f"was changed, or is not by the key {keys[1]}"


def test_the_signature_of_another_bundle_does_not_count(tmp_path, signed, keys, write):
    write(tmp_path / "second", labels=("one", "two", "three"), key=open_private_key(keys[0]))
    shutil.copyfile(tmp_path / "second" / "model.sig", signed / "model.sig")
    assert "manifest.json" in fault(signed, keys[1])


def test_packages_that_a_developer_adds_to_the_samples_are_not_covered(signed, keys):
    packages = signed / "samples" / "browser" / "node_modules"
    (packages / "ort").mkdir(parents=True)
    (packages / "ort" / "index.mjs").write_text("")
    (packages / ".bin").symlink_to("ort")
    (signed / "samples" / "python" / "mine.py").write_text("")
    assert fault(signed, keys[1]) is None
    sign_bundle(signed, open_private_key(keys[0]))
    assert not {name for name in signed_names(signed) if "mine" in name or "node_modules" in name}


@pytest.mark.parametrize("leads_to", ["nowhere", "..", "golden", "model.onnx"])
@pytest.mark.parametrize("name", ["more", "golden/more"])
def test_a_link_that_was_added_is_named_whatever_it_leads_to(signed, keys, leads_to, name):
    (signed / name).symlink_to(signed / leads_to)
    assert fault(signed, keys[1]) == f"does not hold: {name} was added after signing"
    assert find_changed_files(signed, read_manifest(signed)) == [name]


def test_a_folder_of_the_bundle_that_became_a_link_is_named(tmp_path, signed, keys):
    (signed / "golden").rename(tmp_path / "elsewhere")
    (signed / "golden").symlink_to(tmp_path / "elsewhere")
    assert fault(signed, keys[1]) == "does not hold: golden was added after signing"


def test_files_of_the_bundle_may_be_links_to_the_same_bytes(tmp_path, signed, keys):
    for name in ("model.onnx", "manifest.json", "model.sig"):
        (signed / name).rename(tmp_path / name)
        (signed / name).symlink_to(tmp_path / name)
    assert fault(signed, keys[1]) is None
    assert find_changed_files(signed, read_manifest(signed)) == []


@pytest.mark.parametrize("leads_to", ["nowhere", ".."])
def test_a_bundle_with_a_link_that_was_added_cannot_be_signed(signed, keys, leads_to):
    (signed / "gone").symlink_to(leads_to)
    with pytest.raises(DataError, match=r"cannot be signed: links were added to it \(gone\)\. Remove them\."):
        sign_bundle(signed, open_private_key(keys[0]))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda folder: folder / "none.pem", "none.pem cannot be read: No such file or directory. Give an elliptic"),
        (lambda folder: write_keys(folder, kind="RSA")[0], r"is a key of another kind \(RSAPrivateKey\)"),
        (lambda folder: write_keys(folder, kind="secp256k1")[0], "is a key of the curve secp256k1"),
        (lambda folder: write_keys(folder, password="open")[0], "is protected by a password"),
        (lambda folder: write_keys(folder)[1], "is not a private key that can be read. Give an elliptic-curve key"),
    ],
)
def test_a_file_that_is_not_a_fitting_private_key_is_refused(tmp_path, make, text):
    with pytest.raises(InputError, match=f"^--sign .*{text}"):
        open_private_key(make(tmp_path))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda folder: folder / "none.pub", "none.pub cannot be read"),
        (lambda folder: write_keys(folder)[0], "is not a public key that can be read"),
        (lambda folder: write_keys(folder, kind="RSA")[1], r"is a key of another kind \(RSAPublicKey\)"),
    ],
)
def test_a_file_that_is_not_a_fitting_public_key_is_refused(tmp_path, make, text):
    with pytest.raises(InputError, match=f"^--public-key .*{text}"):
        open_public_key(make(tmp_path))
