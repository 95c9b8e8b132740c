"""A self-signed certificate, so that browsers on the network get a secure page. Its key is only kept in memory."""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from edgeopt.errors import DeviceError, last_line

OPENSSL_SECONDS = 60.0
VALID_DAYS = 30


class Certificate(NamedTuple):
    """A self-signed certificate for this session."""

    context: ssl.SSLContext
    fingerprint: str
    """SHA-256 of the certificate as browsers show it: pairs of hex digits with colons."""


def make_certificate(uri: str, host: str) -> Certificate:
    """Make a key and a certificate for one host with the program ``openssl``.

    Args:
        uri: How the user names the device; errors begin with it.
        host: The address or name that the browser will open.

    Raises:
        DeviceError: ``openssl`` is not installed here, or it failed.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-tls-") as folder:
        key, certificate = Path(folder) / "key.pem", Path(folder) / "certificate.pem"
        command = [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256",
            "-days", str(VALID_DAYS), "-subj", "/CN=edgeopt", "-addext", f"subjectAltName={_alternative_name(host)}",
            "-addext", "extendedKeyUsage=serverAuth", "-keyout", str(key), "-out", str(certificate),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=OPENSSL_SECONDS, check=False
            )
        except FileNotFoundError as error:
            raise DeviceError(
                f"{uri}: `openssl` is not installed here; it makes the certificate for a page on the network. "
                "Install it, or add the option `tls=no` for plain http, over which browsers allow one thread."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"{uri}: `openssl` did not make a certificate within {OPENSSL_SECONDS:.0f} s.") from error
        if done.returncode:
            raise DeviceError(f"{uri}: `openssl` could not make a certificate: {last_line(done.stderr)}.")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest().upper()
    return Certificate(context, ":".join(digest[start : start + 2] for start in range(0, len(digest), 2)))


def _alternative_name(host: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(host)}"
    except ValueError:
        return f"DNS:{host}"
