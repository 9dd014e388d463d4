"""The router connects only where the policy allows, for any answer of a name server and any form of an address."""

from __future__ import annotations

import ipaddress
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import netaddr
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from mor_core.clients import Source
from mor_router.clients.egress import EgressPolicy, EgressRefused, PinnedTransport
from mor_router.clients.registry import ClientRecord
from mor_router.clients.responses import ClientFailure
from mor_router.clients.special_addresses import effective_address
from pydantic import SecretStr

from tests.router.conftest import Start
from tests.router.endpoints import TOKEN, Endpoints, redirect

pytestmark = pytest.mark.anyio

POD_NETWORK = ipaddress.ip_network("10.42.0.0/16")
OFFICE = ipaddress.ip_network("192.168.7.0/24")


def policy(networks: tuple[ipaddress.IPv4Network, ...] = (OFFICE,), **names: list[str]) -> EgressPolicy:
    async def resolver(host: str, port: int) -> list[str]:
        return names[host.partition(".")[0]]

    return EgressPolicy(allow_loopback=True, networks=networks, kubernetes=(POD_NETWORK,), resolver=resolver)


async def test_a_connection_that_is_reset_at_once_is_a_failed_connection() -> None:
    """The network library answers that with an error of its own kind, which must cost the client no group."""

    def reset(request: httpx.Request) -> httpx.Response:
        raise AttributeError("'NoneType' object has no attribute 'setsockopt'")

    transport = PinnedTransport(policy(), "loopback", httpx.MockTransport(reset))
    with pytest.raises(httpx.ConnectError, match=r"127\.0\.0\.1 reset the connection"):
        await transport.handle_async_request(httpx.Request("GET", "http://127.0.0.1:1/v1/card"))


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("8.8.8.8", "api"),
        ("2606:4700::1111", "api"),
        ("192.0.0.9", "api"),
        ("2001:3::1", "api"),
        ("64:ff9b::8.8.8.8", "api"),
        ("192.168.7.9", "api"),
        ("::ffff:192.168.7.9", "api"),
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("10.42.3.4", "kubernetes"),
    ],
)
def test_addresses_that_a_source_may_have(address: str, source: Source) -> None:
    policy().check(address, address, source)


@pytest.mark.parametrize(
    ("address", "source", "remedy"),
    [
        ("127.0.0.1", "api", "MOR_ALLOW_LOOPBACK"),
        ("::1", "api", "MOR_ALLOW_LOOPBACK"),
        ("::ffff:127.0.0.1", "api", "MOR_ALLOW_LOOPBACK"),
        ("::ffff:10.0.0.1", "api", "MOR_ALLOWED_NETWORKS"),
        ("10.0.0.1", "api", "MOR_ALLOWED_NETWORKS"),
        ("10.42.3.4", "api", "MOR_ALLOWED_NETWORKS"),
        ("fd00::1", "api", "MOR_ALLOWED_NETWORKS"),
        ("2002:7f00:1::", "api", "MOR_ALLOW_LOOPBACK"),
        ("64:ff9b::10.0.0.1", "api", "MOR_ALLOWED_NETWORKS"),
        ("100.64.1.1", "api", "MOR_ALLOWED_NETWORKS"),
        ("0.0.0.0", "api", "never connected to"),
        ("169.254.169.254", "api", "never connected to"),
        ("::ffff:169.254.169.254", "api", "never connected to"),
        ("64:ff9b::169.254.169.254", "api", "never connected to"),
        ("fd00:ec2::254", "api", "never connected to"),
        ("fe80::1%eth0", "api", "never connected to"),
        ("224.0.0.1", "api", "never connected to"),
        ("::ffff:0:10.0.0.1", "api", "MOR_ALLOWED_NETWORKS"),
        ("::ffff:0:127.0.0.1", "api", "MOR_ALLOW_LOOPBACK"),
        ("::ffff:0:169.254.169.254", "api", "never connected to"),
        ("::10.0.0.1", "api", "MOR_ALLOWED_NETWORKS"),
        ("64:ff9b:1::10.0.0.1", "api", "never connected to"),
        ("64:ff9b:1:a9fe:a9:fe00::", "api", "never connected to"),
        ("168.63.129.16", "api", "never connected to"),
        ("169.254.170.2", "kubernetes", "never connected to"),
        ("fd20:ce::254", "kubernetes", "never connected to"),
        ("255.255.255.255", "api", "never connected to"),
        ("2001:db8::1", "api", "documentation"),
        ("3fff::1", "api", "documentation"),
        ("5f00::1", "api", "MOR_ALLOWED_NETWORKS"),
        ("100::1", "api", "MOR_ALLOWED_NETWORKS"),
        ("2001:0:a9fe:a9fe::1", "api", "protocol assignments"),
        ("192.88.99.1", "api", "6to4 relays"),
        ("198.19.0.1", "api", "benchmarks"),
        ("8.8.8.8", "kubernetes", "MOR_KUBERNETES_NETWORKS"),
        ("127.0.0.1", "kubernetes", "MOR_KUBERNETES_NETWORKS"),
        ("8.8.8.8", "loopback", "MOR_ALLOW_LOOPBACK"),
    ],
)
def test_addresses_that_a_source_may_not_have(address: str, source: Source, remedy: str) -> None:
    with pytest.raises(EgressRefused, match=remedy):
        policy().check(address, address, source)


IPV4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
IPV6 = st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address)


@given(address=IPV4 | IPV6)
@settings(max_examples=1000, deadline=None)
def test_an_address_that_a_library_knows_as_special_is_refused(address: ipaddress.IPv4Address) -> None:
    """Python's own tables and netaddr's are older copies of the same registries."""
    reached = effective_address(str(address))
    if not (netaddr.IPAddress(str(reached)).is_global() and reached.is_global) or reached.is_reserved:
        with pytest.raises(EgressRefused):
            policy(networks=()).check("host", str(address), "api")


@given(inside=IPV4, block=st.sampled_from(["::ffff:0:0", "::ffff:0:0:0", "64:ff9b::", "2002::"]))
@settings(max_examples=500, deadline=None)
def test_an_embedded_address_is_judged_as_the_one_that_it_reaches(inside: ipaddress.IPv4Address, block: str) -> None:
    outer = ipaddress.IPv6Address(int(ipaddress.IPv6Address(block)) + (int(inside) << (80 if block == "2002::" else 0)))
    assert allowed(str(outer)) == allowed(str(inside))


def allowed(address: str) -> bool:
    try:
        policy(networks=()).check("host", address, "api")
    except EgressRefused:
        return False
    return True


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ftp://clinic.example", "https://host"),
        ("https://user:pass@clinic.example", "without user"),
        ("https://@clinic.example", "without user"),
        ("https://:pass@clinic.example", "without user"),
        ("https://clinic.example/path?", "query"),
        ("https://clinic.example/path#", "fragment"),
        ("https://clinic.example?", "query"),
        ("https://clinic.example\\@8.8.8.8", "without user"),
        ("https://clinic.example/a b", "in ASCII"),
        ("https://clinic.example/\n", "in ASCII"),
        ("https://\u2460.example", "in ASCII"),
        ("https://clinic.example:99999", "no valid host or port"),
        ("https://xn--a.com", "no valid host or port"),
        ("https://[v1.a]", "no valid host or port"),
        ("https://", "https://host"),
        ("http://public.example", "serve https"),
        ("https://mixed.example", "not a public address"),
        ("https://metadata.example", "never connected to"),
    ],
)
async def test_bad_urls_are_refused_at_enrolment(url: str, expected: str) -> None:
    names = {"public": ["8.8.8.8"], "mixed": ["8.8.8.8", "10.0.0.1"], "metadata": ["169.254.169.254"]}
    with pytest.raises(ValueError, match=expected):
        await policy(**names).admit(url)


async def test_loopback_is_refused_unless_it_is_allowed(start: Start, endpoints: Endpoints) -> None:
    endpoint = endpoints.endpoint("clinic")
    async with start(allow_loopback=False) as api:
        body = {"name": "clinic", "url": endpoint.url, "token": TOKEN}
        answer = await api.call("POST", "/v1/clients", body)
        assert answer.status_code == 422
        assert "MOR_ALLOW_LOOPBACK" in answer.json()["detail"]
        assert endpoint.headers == []


async def test_a_name_that_moves_after_enrolment_is_not_followed(start: Start, endpoints: Endpoints) -> None:
    """DNS rebinding: at enrolment the name is at an allowed address, later at the machine's own metadata service."""
    endpoint = endpoints.endpoint("clinic")
    answers = ["127.0.0.1"]

    async def resolver(host: str, port: int) -> list[str]:
        assert host == "clinic.example"
        return answers

    rebinding = EgressPolicy(allow_loopback=True, networks=(), kubernetes=(), resolver=resolver)
    async with start(rebinding) as api:
        endpoint.url = endpoint.url.replace("127.0.0.1", "clinic.example")
        await api.enrol(endpoint)
        assert (await api.reward("answer 1", "answer 2"))["status"] == "ok"
        assert endpoint.headers[-1]["host"].startswith("clinic.example:")
        for moved in (["169.254.169.254"], ["10.0.0.1"], ["127.0.0.1", "10.0.0.1"], ["8.8.8.8"]):
            answers[:] = moved
            endpoint.calls.clear()
            found = await api.reward("answer 1", "answer 2")
            assert found["rewards"] is None
            assert f"clinic.example is at {moved[-1]}" in found["detail"]
            assert endpoint.calls == []


async def test_a_secret_does_not_follow_an_unencrypted_address_that_becomes_public(start: Start) -> None:
    """At enrolment the name is in an allowed network, where http is permitted; later it is on the internet."""
    answers: list[str] = []

    async def resolver(host: str, port: int) -> list[str]:
        return answers

    office = EgressPolicy(allow_loopback=False, networks=(OFFICE,), kubernetes=(), resolver=resolver)
    answers[:] = ["192.168.7.9"]
    assert await office.admit("http://clinic.example") == "api"
    answers[:] = ["8.8.8.8"]
    record = ClientRecord(
        name="clinic", url="http://clinic.example", domains="", source="api", state="active", enrolled_at=0.0,
        secret="", inbound_sha256="0" * 64, revision="1",
    )  # fmt: skip
    async with start(office) as api:
        client = api.router.clients.pool.open(record, SecretStr(TOKEN))
        with pytest.raises(ClientFailure, match="would cross the internet unencrypted"):
            await client.card(5)
        await client.close()


async def test_redirects_are_not_followed(start: Start, endpoints: Endpoints) -> None:
    endpoint = endpoints.endpoint("clinic")
    async with start() as api:
        await api.enrol(endpoint)
        endpoint.broken = redirect
        found = await api.reward("answer 1", "answer 2")
        assert "answered 307, a redirect; enrol the address that it leads to" in found["detail"]


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Make a certificate authority and a server certificate for clinic.example; return CA, certificate, key."""
    now = datetime.now(UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(public)
        made = made.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        made = made.not_valid_after(now + timedelta(days=1))
        keys = x509.SubjectKeyIdentifier.from_public_key(public)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
        return made.add_extension(keys, critical=False).add_extension(issuer, critical=False)

    usage = x509.KeyUsage(*[name == "key_cert_sign" for name in _USAGES])
    root = builder(ca_name, ca_key.public_key())
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    root_certificate = root.add_extension(usage, critical=True).sign(ca_key, hashes.SHA256())
    leaf = builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clinic")]), key.public_key())
    leaf = leaf.add_extension(x509.SubjectAlternativeName([x509.DNSName("clinic.example")]), critical=False)
    certificate = leaf.sign(ca_key, hashes.SHA256())
    files = (tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
    pem = serialization.Encoding.PEM
    files[0].write_bytes(root_certificate.public_bytes(pem))
    files[1].write_bytes(certificate.public_bytes(pem))
    plain = serialization.NoEncryption()
    files[2].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return files


_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


@pytest.fixture
def tls_server(endpoints: Endpoints, authority: tuple[Path, Path, Path]) -> Iterator[int]:
    """Serve the reward endpoints behind TLS that requires a client certificate."""
    listener = endpoints.listen()
    config = uvicorn.Config(
        endpoints.app,
        log_config=None,
        ssl_certfile=authority[1],
        ssl_keyfile=authority[2],
        ssl_ca_certs=str(authority[0]),
        ssl_cert_reqs=ssl.CERT_REQUIRED,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(timeout=10)


async def test_tls_is_verified_against_the_name_though_the_address_is_pinned(
    start: Start, endpoints: Endpoints, tls_server: int, authority: tuple[Path, Path, Path]
) -> None:
    endpoint = endpoints.endpoint("clinic")
    path = endpoint.url.removeprefix(endpoints.address)

    async def resolver(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    pinned = EgressPolicy(allow_loopback=True, networks=(), kubernetes=(), resolver=resolver)
    body = {"name": "clinic", "url": f"https://clinic.example:{tls_server}{path}", "token": TOKEN}
    ca, certificate, key = authority
    async with start(pinned) as api:
        answer = await api.call("POST", "/v1/clients", body)
        assert "certificate verify failed" in answer.json()["detail"]
    mutual = {"ca_file": ca, "client_cert_file": certificate, "client_key_file": key}
    async with start(pinned, **mutual) as api:
        other = {**body, "url": body["url"].replace("clinic.example", "other.example")}
        answer = await api.call("POST", "/v1/clients", other)
        assert "certificate verify failed" in answer.json()["detail"]
        await api.ok("POST", "/v1/clients", body)
