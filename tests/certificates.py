"""Self-signed certificates for tests of TLS, each its own authority; no authorities for tests without TLS."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""``verify`` of a client of plain HTTP that is made for one request: loading the authorities takes 24 ms of CPU time,
which tests that wait for a run would spend all the while."""


def self_signed(*names: str) -> tuple[bytes, bytes]:
    """Return a certificate and private key (PEM) for 127.0.0.1, ::1 and the host ``names``."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, (*names, "test")[0])])
    now = datetime.now(UTC)
    addresses = [x509.IPAddress(ip_address(each)) for each in ("127.0.0.1", "::1")]
    alternatives = [*addresses, *(x509.DNSName(each) for each in names)]
    signed = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number(), now, now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    key = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return signed.public_bytes(serialization.Encoding.PEM), key
