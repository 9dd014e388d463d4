"""TLS contexts whose files are read again when they change, as cert-manager renews them.

A connection takes the certificates that are in the files when it begins; connections that are open keep theirs. Files
that do not fit, such as a certificate whose new key is not there yet, change nothing: the last good ones stay in use,
and the log and ``mor_certificate_reload_failed`` say so until they fit.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import structlog

from mor_core.errors import Invalid
from mor_core.metrics import CERTIFICATE_EXPIRY, CERTIFICATE_RELOAD_FAILED

Mark = tuple[tuple[int, ...] | None, ...]

log = structlog.get_logger(__name__)


class ReloadedContext(ssl.SSLContext):
    """TLS context for one end, made anew by ``make`` when one of ``files`` changes.

    Users take it for an ordinary context: every handshake begins with ``wrap_bio`` or ``wrap_socket``.
    """

    _settings: str
    _files: Sequence[Path]
    _make: Callable[[], ssl.SSLContext]
    _certificate: Path | None
    _lock: threading.Lock
    _mark: Mark
    _newest: ssl.SSLContext

    def __new__(
        cls,
        protocol: int,
        settings: str,
        files: Sequence[Path],
        make: Callable[[], ssl.SSLContext],
        certificate: Path | None = None,
    ) -> Self:
        """``settings``: variables that name the files; ``certificate``: the own one among them.

        Raises:
            Invalid: the files cannot be used.
        """
        self = super().__new__(cls, protocol)
        self._settings, self._files, self._make, self._certificate = settings, files, make, certificate
        self._lock = threading.Lock()
        self._mark = _mark_of(files)
        try:
            self._newest = self._made()
        except (OSError, ValueError) as error:
            names = ", ".join(map(str, files))
            raise Invalid(
                f"{settings}: {names} cannot be used ({_reason(error)}); give readable PEM files, and a certificate "
                "with its own key"
            ) from error
        return self

    def __init__(self, *_: Any) -> None:
        """``SSLContext`` takes its arguments in ``__new__``."""

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        return self._fresh().wrap_bio(*args, **options)

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        return self._fresh().wrap_socket(*args, **options)

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        """Offer protocols, as HTTP clients do before each connection."""
        self._protocols = list(alpn_protocols)
        self._newest.set_alpn_protocols(self._protocols)

    def _fresh(self) -> ssl.SSLContext:
        """Return a context of the present files, or of the last good ones."""
        with self._lock:
            mark = _mark_of(self._files)
            if mark != self._mark:
                self._mark = mark  # files that do not fit are tried again when they change
                try:
                    self._newest = self._made()
                except (OSError, ValueError) as error:
                    CERTIFICATE_RELOAD_FAILED.labels(self._settings).set(1)
                    log.error(
                        "changed certificates cannot be used; the last good ones stay in use",
                        settings=self._settings,
                        reason=_reason(error),
                    )
                else:
                    log.info("changed certificates are in use", settings=self._settings)
            return self._newest

    def _made(self) -> ssl.SSLContext:
        context = self._make()
        if protocols := getattr(self, "_protocols", None):
            context.set_alpn_protocols(protocols)
        CERTIFICATE_RELOAD_FAILED.labels(self._settings).set(0)
        if self._certificate is not None:
            CERTIFICATE_EXPIRY.labels(self._settings).set(_expiry(self._certificate))
        return context


def server_context(certificate: Path, key: Path) -> ReloadedContext:
    """Return the context of a server.

    Raises:
        Invalid: the files cannot be used.
    """

    def make() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context

    return ReloadedContext(
        ssl.PROTOCOL_TLS_SERVER, "MOR_TLS_CERT_FILE, MOR_TLS_KEY_FILE", (certificate, key), make, certificate
    )


def client_context(
    settings: str, authorities: Path | None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return the context of a client that trusts ``authorities``, by default the system's.

    ``settings``: variables that name the files. ``certificate`` and ``key`` are its own, for mutual TLS.

    Raises:
        Invalid: the files cannot be used.
    """

    def make() -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=authorities)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        return context

    bundle = authorities or system_authorities()
    files = [path for path in (bundle, certificate, key) if path is not None]
    return ReloadedContext(ssl.PROTOCOL_TLS_CLIENT, settings, files, make, certificate)


def system_authorities() -> Path | None:
    """Return the file of the system's certificate authorities, or that of ``SSL_CERT_FILE``."""
    found = ssl.get_default_verify_paths().cafile
    return None if found is None else Path(found)


def _mark_of(files: Sequence[Path]) -> Mark:
    """Return what differs once a file is written, or another one is in its place, as behind a link that moved."""
    found: list[tuple[int, ...] | None] = []
    for path in files:
        try:
            state = path.stat()
            found.append((state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size))
        except OSError:
            found.append(None)
    return tuple(found)


def _expiry(certificate: Path) -> float:
    """Return the end of a certificate's validity as Unix time, seconds."""
    from cryptography import x509  # the command line has no certificate of its own

    return x509.load_pem_x509_certificates(certificate.read_bytes())[0].not_valid_after_utc.timestamp()


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error.args[-1]).lower().replace("_", " ")
    return getattr(error, "strerror", None) or type(error).__name__
