"""Certificates that are renewed are in use for the next connection; open connections and bad files change nothing."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from mor_core.certificates import client_context, server_context
from mor_core.errors import Invalid
from mor_core.metrics import CERTIFICATE_EXPIRY, CERTIFICATE_RELOAD_FAILED
from mor_core.redis_client import open_client

from tests.certificates import self_signed
from tests.core.limited_service import running
from tests.ports import free_port
from tests.redis_servers import PASSWORD, RedisServer, needs_redis

pytestmark = pytest.mark.anyio

SERVER = "MOR_TLS_CERT_FILE, MOR_TLS_KEY_FILE"


class Mounted:
    """Folder of a secret as Kubernetes mounts it: names lead through ``..data`` to the newest of several folders."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._count = folder, 0
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        for path in (self.certificate, self.key):
            path.symlink_to(Path("..data") / path.name)

    def renew(self, pair: tuple[bytes, bytes] | None = None) -> int:
        """Put another pair in place at once; return the serial number of its certificate."""
        certificate, key = pair or self_signed()
        self._count += 1
        newest = self._folder / f"..{self._count}"
        newest.mkdir()
        (newest / "tls.crt").write_bytes(certificate)
        (newest / "tls.key").write_bytes(key)
        link = self._folder / "..data_tmp"
        link.symlink_to(newest.name)
        link.replace(self._folder / "..data")
        return serial_of(certificate)


def serial_of(certificate: bytes) -> int:
    return x509.load_pem_x509_certificate(certificate).serial_number


def value(gauge: Any, settings: str = SERVER) -> float:
    return float(gauge.labels(settings)._value.get())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
    writer.close()


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    """Open a connection; return it and the serial number of the server's certificate."""
    anything = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anything.check_hostname, anything.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=anything)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return reader, writer, x509.load_der_x509_certificate(shown).serial_number


async def serial_at(port: int) -> int:
    _, writer, serial = await connect(port)
    writer.close()
    return serial


async def test_a_renewed_certificate_is_served_and_open_connections_go_on(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path)
    first = mounted.renew()
    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_context(mounted.certificate, mounted.key))
    port = server.sockets[0].getsockname()[1]
    reader, writer, shown = await connect(port)
    assert shown == first
    second = mounted.renew()
    assert second != first
    assert await serial_at(port) == second
    writer.write(b"still there\n")
    assert await reader.readline() == b"still there\n"
    writer.close()
    server.close()


@pytest.mark.parametrize("harm", ["only the certificate", "half a file", "no file", "no PEM"])
async def test_files_that_do_not_fit_change_nothing_until_they_do(tmp_path: Path, harm: str) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    pair, other = self_signed(), self_signed()
    certificate.write_bytes(pair[0])
    key.write_bytes(pair[1])
    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_context(certificate, key))
    port = server.sockets[0].getsockname()[1]
    if harm == "only the certificate":
        certificate.write_bytes(other[0])
    elif harm == "half a file":
        certificate.write_bytes(other[0][: len(other[0]) // 2])
    elif harm == "no file":
        key.unlink()
    else:
        key.write_bytes(b"\0\xff")
    for _ in range(2):
        assert await serial_at(port) == serial_of(pair[0])
        assert value(CERTIFICATE_RELOAD_FAILED) == 1
    certificate.write_bytes(other[0])
    key.write_bytes(other[1])
    assert await serial_at(port) == serial_of(other[0])
    assert value(CERTIFICATE_RELOAD_FAILED) == 0
    ends = x509.load_pem_x509_certificate(other[0]).not_valid_after_utc.timestamp()
    assert value(CERTIFICATE_EXPIRY) == ends
    server.close()


def test_files_that_cannot_be_used_are_refused_at_the_start_with_their_settings(tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    with pytest.raises(Invalid, match=r"MOR_TLS_CERT_FILE.*No such file"):
        server_context(certificate, key)
    certificate.write_bytes(self_signed()[0])
    key.write_bytes(self_signed()[1])
    with pytest.raises(Invalid, match="key values mismatch"):
        server_context(certificate, key)
    with pytest.raises(Invalid, match="MOR_ROUTER_CA_FILE"):
        client_context("MOR_ROUTER_CA_FILE", tmp_path / "missing.crt")


@contextmanager
def service(folder: Path, mounted: Mounted) -> Iterator[str]:
    """Run a service as each of the four begins, with metrics on a port of its own."""
    settings = {"tls_cert_file": mounted.certificate, "tls_key_file": mounted.key, "host": "::"}
    with running(folder, **settings) as process:
        yield f"https://[::1]:{process.port}"


def test_a_service_and_its_callers_take_renewed_files(tmp_path: Path) -> None:
    """The caller's bundle is renewed, too: it trusts the new authority, and the old one no longer."""
    mounted = Mounted(tmp_path / "mounted")
    mounted.renew()
    trusted = client_context("MOR_CONTROL_CA_FILE", mounted.certificate)
    before = mounted.certificate.resolve()
    with service(tmp_path, mounted) as address, httpx.Client(verify=trusted, trust_env=False) as open_before:
        assert open_before.get(f"{address}/healthz").is_success
        with httpx.Client(verify=ssl.create_default_context(cafile=before), trust_env=False) as pinned:
            assert pinned.get(f"{address}/healthz").is_success
            mounted.renew()
            assert pinned.get(f"{address}/healthz").is_success, "its connection is open"
        assert open_before.get(f"{address}/healthz").is_success
        with httpx.Client(verify=trusted, trust_env=False) as new:
            assert new.get(f"{address}/healthz").is_success
        with (
            httpx.Client(verify=ssl.create_default_context(cafile=before), trust_env=False) as outdated,
            pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            outdated.get(f"{address}/healthz")


async def test_a_client_shows_its_renewed_certificate(tmp_path: Path) -> None:
    """As the router does to reward services that want mutual TLS."""
    at_server, own = Mounted(tmp_path / "server"), Mounted(tmp_path / "own")
    at_server.renew()
    serials: list[int] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        serials.append(x509.load_der_x509_certificate(shown).serial_number)
        writer.close()

    pairs = [self_signed("first"), self_signed("second")]  # an authority is found by its name
    wanted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    wanted.load_cert_chain(at_server.certificate, at_server.key)
    wanted.verify_mode = ssl.CERT_REQUIRED
    wanted.load_verify_locations(cadata=b"".join(pair[0] for pair in pairs).decode())
    server = await asyncio.start_server(note, "127.0.0.1", 0, ssl=wanted)
    own.renew(pairs[0])
    context = client_context("MOR_CLIENT_CERT_FILE", at_server.certificate, own.certificate, own.key)
    for pair in pairs:
        own.renew(pair)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=context)
        writer.write(b"hello\n")
        await reader.read()
        writer.close()
    server.close()
    assert serials == [serial_of(pair[0]) for pair in pairs]


@needs_redis
async def test_a_queue_server_over_tls_is_trusted_by_the_renewed_authority(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path / "mounted")
    mounted.renew()
    port = free_port()
    files = ("--tls-cert-file", str(mounted.certificate), "--tls-key-file", str(mounted.key))
    tls = ("--tls-port", str(port), *files, "--tls-auth-clients", "no")
    server = RedisServer(tmp_path / "server", "--requirepass", PASSWORD, *tls)
    redis = open_client(f"rediss://:{PASSWORD}@127.0.0.1:{port}/0?ssl_ca_certs={mounted.certificate}")
    try:
        assert await redis.set("mor:{a}:x", 1)
        mounted.renew()
        with server.client() as admin:
            admin.config_set("tls-cert-file", str(mounted.certificate))  # as its operator does after a renewal
        assert await redis.get("mor:{a}:x") == b"1", "the open connection goes on"
        await redis.connection_pool.disconnect()
        assert await redis.get("mor:{a}:x") == b"1"
    finally:
        await redis.aclose()
        server.kill()
