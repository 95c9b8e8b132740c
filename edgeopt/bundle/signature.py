"""``model.sig``: the signature of a bundle, in the format of OpenSSF Model Signing, by an elliptic-curve key.

It covers every file of the bundle, the manifest too, except files that an app's developer adds to the samples. The
program of the package ``model-signing`` verifies it too. The user's key goes in; no server is asked.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.bundle.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    find_added_links,
    find_added_samples,
    hash_files,
    read_manifest,
)
from edgeopt.errors import DataError, InputError
from edgeopt.model_files.layout import hash_of_file

if TYPE_CHECKING:
    from model_signing import hashing, signing, verifying

_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
"""That the format allows, by their names in OpenSSL."""
_SHOWN_FILES = 5
_NEW_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem"
_ITS_PUBLIC_KEY = "openssl ec -in KEY.pem -pubout -out KEY.pub"


class PrivateKey(NamedTuple):
    """A key that signs, read and checked."""

    path: Path
    config: signing.Config


class PublicKey(NamedTuple):
    """A key that verifies, read and checked."""

    path: Path
    config: verifying.Config


def open_private_key(path: Path) -> PrivateKey:
    """Read a key that signs, before any work.

    Raises:
        InputError: the package ``model-signing`` is missing, or the file isn't such a key, or has a password.
    """
    option = f"--sign {path}"
    try:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from model_signing import signing
    except ImportError as error:
        raise _missing_package("--sign", error) from error
    _read_key(path, option, lambda data: load_pem_private_key(data, None), f"make one with `{_NEW_KEY}`")
    return PrivateKey(path, signing.Config().use_elliptic_key_signer(private_key=path))


def open_public_key(path: Path) -> PublicKey:
    """Read a key that verifies, before any work.

    Raises:
        InputError: the package ``model-signing`` is missing, or the file isn't such a key.
    """
    option = f"--public-key {path}"
    try:
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
        from model_signing import verifying
    except ImportError as error:
        raise _missing_package("--public-key", error) from error
    _read_key(path, option, load_pem_public_key, f"`{_ITS_PUBLIC_KEY}` writes the one of KEY.pem")
    return PublicKey(path, verifying.Config().use_elliptic_key_verifier(public_key=path))


def _missing_package(option: str, error: ImportError) -> InputError:
    return InputError(
        f"{option} needs the package model-signing, which cannot be loaded here ({error}). Install it: "
        "pip install 'edgeopt[sign]'."
    )


def _read_key(path: Path, option: str, load: Callable[[bytes], Any], advice: str) -> None:
    """Check that a file is a key of a kind that the signature's format allows."""
    from cryptography.exceptions import UnsupportedAlgorithm

    advice = f"Give an elliptic-curve key ({', '.join(_CURVES.values())}) as PEM; {advice}."
    try:
        key = load(path.read_bytes())
    except OSError as error:
        raise InputError(f"{option} cannot be read: {error.strerror}. {advice}") from error
    except TypeError as error:
        raise InputError(
            f"{option} is protected by a password, and a build has nobody to ask for it. Write a copy without one, "
            "which only the build can read: openssl ec -in KEY.pem -out PLAIN.pem."
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        kind = "private" if option.startswith("--sign") else "public"
        raise InputError(f"{option} is not a {kind} key that can be read. {advice}") from error
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in _CURVES:
        found = f"a key of the curve {curve}" if curve else f"a key of another kind ({type(key).__name__})"
        raise InputError(f"{option} is {found.replace('_', ' ')}. {advice}")


def sign_bundle(bundle: Path, key: PrivateKey) -> None:
    """Write the signature of a finished bundle into it.

    Raises:
        DataError: it has no manifest that can be read, or holds links that were added or something that isn't a file.
        OSError: a file cannot be read or written.
    """
    manifest = read_manifest(bundle)
    links = find_added_links(bundle, manifest)
    if links:
        raise DataError(f"{bundle} cannot be signed: links were added to it ({_shown(links)}). Remove them.")
    key.config.set_hashing_config(_covered_files(bundle, manifest))
    try:
        key.config.sign(bundle, bundle / SIGNATURE_NAME)
    except ValueError as error:  # a socket
        raise DataError(f"{bundle} cannot be signed: {error}") from error


def find_signature_fault(bundle: Path, manifest: Manifest, key: PublicKey) -> str | None:
    """Return what is wrong with a bundle's signature, as the end of a sentence; None if it holds for every file."""
    from cryptography.exceptions import InvalidSignature

    if not (bundle / SIGNATURE_NAME).is_file():
        return "is missing: the bundle is not signed"
    links = find_added_links(bundle, manifest)
    if links:  # the format skips folders behind links
        return f"does not hold: {_shown(links)} {'was' if len(links) == 1 else 'were'} added after signing"
    key.config.set_hashing_config(_covered_files(bundle, manifest))
    try:
        key.config.verify(bundle, bundle / SIGNATURE_NAME)
    except InvalidSignature:
        return f"was changed, or is not by the key {key.path}"
    except ValueError as error:
        reason = str(error).strip()
        if reason.startswith("Key mismatch"):
            return f"is by another key than {key.path}"
        if reason.startswith("Signature mismatch"):
            return f"does not hold: {_shown(_find_unsigned(bundle, manifest))} changed after signing"
        return f"cannot be read as a signature: {reason}"
    except (LookupError, TypeError, AttributeError, OSError) as error:  # of JSON that has another form
        return f"cannot be read as a signature: {type(error).__name__} at {error}"
    return None


def _find_unsigned(bundle: Path, manifest: Manifest) -> list[str]:
    """Name the files of a bundle that differ from those of its signature, which is valid itself."""
    envelope = json.loads((bundle / SIGNATURE_NAME).read_bytes())["dsseEnvelope"]
    resources = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["resources"]
    signed = {resource["name"]: resource["digest"] for resource in resources}
    found = {name: entry.sha256 for name, entry in hash_files(bundle, manifest).items()}
    found[MANIFEST_NAME] = hash_of_file(bundle / MANIFEST_NAME)
    return sorted(name for name in signed.keys() | found.keys() if signed.get(name) != found.get(name))


def _shown(names: list[str]) -> str:
    more = len(names) - _SHOWN_FILES
    return ", ".join(names[:_SHOWN_FILES]) + (f" and {more} more" if more > 0 else "")


def _covered_files(bundle: Path, manifest: Manifest) -> hashing.Config:
    """Return how the files of a bundle are hashed: each as a whole, links by their content.

    The signature's subject is the name of the task, as in the list of parts. The library would take the folder's, which
    is a temporary one in a build; its format says that the name is only for information.
    """
    from model_signing import hashing
    from model_signing.manifest import Manifest as FileDigests
    from model_signing.manifest import SerializationType

    class NamedDigests(hashing.Config):  # type: ignore[misc]  # of a package without types
        def hash(
            self, model_path: hashing.PathLike, *, files_to_hash: Iterable[hashing.PathLike] | None = None
        ) -> FileDigests:
            found = super().hash(model_path, files_to_hash=files_to_hash)
            kind = SerializationType.from_args(found.serialization_type)
            items = [kind.new_item(one.identifier, one.digest) for one in found.resource_descriptors()]
            return FileDigests(Path(manifest.task).name, items, kind)

    left_out = [SIGNATURE_NAME, *find_added_samples(bundle, manifest)]
    config = NamedDigests().use_file_serialization()
    return config.set_ignored_paths(paths=left_out, ignore_git_paths=False).set_allow_symlinks(True)
