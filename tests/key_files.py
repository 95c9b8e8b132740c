"""Files of keys as `openssl` writes them, for tests of signatures."""

from pathlib import Path

import pytest

serialization = pytest.importorskip(
    "cryptography.hazmat.primitives.serialization", reason="the extra `sign` is not installed"
)
pytest.importorskip("model_signing", reason="the extra `sign` is not installed")

from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: E402


def write_keys(folder: Path, name: str = "key", *, kind: str = "P-256", password: str | None = None):
    """Write ``NAME.pem`` and ``NAME.pub``, and return their paths."""
    curves = {"P-256": ec.SECP256R1, "P-521": ec.SECP521R1, "secp256k1": ec.SECP256K1}
    key = rsa.generate_private_key(65537, 2048) if kind == "RSA" else ec.generate_private_key(curves[kind]())
    lock = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, form, lock))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public
