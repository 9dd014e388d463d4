"""Encryption of secrets at rest: AES-256-GCM, with any number of older keys that still decrypt.

A ciphertext is bound to its owner: kind, name, address, the source that decides which networks the address may be in,
the hash of the token that opens the client's page, and the generation of these credentials. They are the associated
data, so a record of which one was rewritten does not decrypt: no secret is sent to an address that it was not given
for, and no page opens to another token.

The keys are a ring. Where they are in a file, a rotation takes effect without a restart, in all replicas within the
time in which they get the new file.
"""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from mor_core.errors import Invalid
from mor_core.failures import describe_failure, quote_failure
from mor_core.hidden_secrets import remember
from pydantic import SecretStr

_BOUND = "mor.secret/3:"
"""Begin of a ciphertext that is bound to all of its owner."""
_PARTLY_BOUND = "mor.secret/2:"
"""Begin of a ciphertext of an earlier version, which was bound to kind, name, address and source. One with neither
begin is a Fernet token, bound to nothing."""
_PARTS_BOUND = 4
"""Fields of the owner that such a ciphertext is bound to."""
_NONCE_BYTES = 12
"""Length that AES-GCM is specified for (NIST SP 800-38D); random ones serve 2³² secrets of one key."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SecretOwner:
    """Owner and address that a secret is bound to; no other may use it."""

    kind: Literal["client", "labeller"]
    name: str
    """Client, or objective of the labeller."""
    url: str
    """Address that it is sent to."""
    source: str
    """Origin of the registration, which determines the permitted networks."""
    page_token_sha256: str = ""
    """Hash of the token that opens the client's page; empty for a labeller, which has none."""
    generation: int = 0
    """Grows with each change of address or credentials."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} at {self.url}"

    def associated_data(self, parts: int | None = None) -> bytes:
        """Return what a ciphertext is bound to, or was in an earlier version: the first ``parts`` fields."""
        return json.dumps(astuple(self)[:parts]).encode()


class SecretStore:
    """Cipher for secrets: the first key encrypts, every key decrypts.

    Raises:
        Invalid: no key, or one that is not a Fernet key.
    """

    def __init__(self, keys: SecretStr, *, reads_unbound: bool = False, file: Path | None = None) -> None:
        """``reads_unbound`` admits the ciphertexts of earlier versions, which are bound to less or to nothing, to
        encrypt them again. ``file``: where the keys were read, for ``refresh``."""
        self._reads_unbound = reads_unbound
        self._file = file
        self._modified = _modified(file)
        self.rotations = 0
        """Number of changes of the keys that were read."""
        self._use(keys)

    def refresh(self) -> None:
        """Read the keys again if their file changed; keep them while it cannot be used."""
        modified = _modified(self._file)
        if self._file is None or modified == self._modified:
            return
        self._modified = modified
        try:
            keys = self._file.read_text()
            self._use(SecretStr(keys))
        except (OSError, ValueError) as error:
            log.error("the file of MOR_SECRET_KEY cannot be used; its last keys stay", reason=describe_failure(error))
            return
        remember(*keys.strip().split(","))
        self.rotations += 1
        log.info("the keys of MOR_SECRET_KEY changed", keys=len(self._ciphers))

    def _use(self, keys: SecretStr) -> None:
        parts = [part.strip() for part in keys.get_secret_value().split(",") if part.strip()]
        if not parts:
            raise Invalid("MOR_SECRET_KEY is not set; make a key with 'mor-router key' and keep it outside of Redis")
        try:
            self._fernet = MultiFernet([Fernet(part) for part in parts])
        except ValueError as error:
            raise Invalid(
                f"MOR_SECRET_KEY: {quote_failure(error).rstrip('.')}; make a key with 'mor-router key'"
            ) from error
        self._ciphers = [AESGCM(_derive(base64.urlsafe_b64decode(part))) for part in parts]

    def encrypt(self, secret: SecretStr, owner: SecretOwner) -> str:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._ciphers[0].encrypt(nonce, secret.get_secret_value().encode(), owner.associated_data())
        return _BOUND + base64.urlsafe_b64encode(nonce + sealed).decode()

    def decrypt(self, encrypted: str, owner: SecretOwner) -> SecretStr:
        """Decrypt the secret of ``owner``.

        Raises:
            Invalid: encrypted with a key that is not in ``MOR_SECRET_KEY``, or for another owner.
        """
        begin, parts = _BOUND, None
        if not encrypted.startswith(_BOUND):
            if not self._reads_unbound:
                raise Invalid(
                    f"the secret of {owner} was stored by an earlier version, which did not bind it to the address "
                    "and the page token; check the address, then run 'mor-router rekey' once with "
                    "MOR_BIND_SECRETS=true, or rotate the token"
                )
            if not encrypted.startswith(_PARTLY_BOUND):
                return self._decrypt_unbound(encrypted, owner)
            begin, parts = _PARTLY_BOUND, _PARTS_BOUND
        data = owner.associated_data(parts)
        try:
            content = base64.urlsafe_b64decode(encrypted.removeprefix(begin))
        except ValueError as error:
            raise Invalid(f"the stored secret of {owner} is no ciphertext; rotate the token") from error
        for cipher in self._ciphers:
            try:
                plain = cipher.decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], data)
            except (InvalidTag, ValueError):
                continue
            return SecretStr(plain.decode())
        raise Invalid(
            f"the secret of {owner} was encrypted with another key, or for another name or address or page token; put "
            "that key behind the current one in MOR_SECRET_KEY, or rotate the token if the address is right"
        )

    def _decrypt_unbound(self, encrypted: str, owner: SecretOwner) -> SecretStr:
        try:
            return SecretStr(self._fernet.decrypt(encrypted).decode())
        except InvalidToken as error:
            raise Invalid(
                f"the secret of {owner} was encrypted with another key; put that key behind the current one in "
                "MOR_SECRET_KEY, or rotate the token"
            ) from error


def _modified(file: Path | None) -> tuple[int, ...] | None:
    """Return what changes when the file, or a link to it, is replaced."""
    try:
        status = None if file is None else file.stat()
    except OSError:
        return ()
    return None if status is None else (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


def _derive(key: bytes) -> bytes:
    """Derive the key for AES-GCM from a Fernet key, which earlier versions used for another cipher."""
    return HKDF(SHA256(), 32, None, b"mor.secret/2").derive(key)
