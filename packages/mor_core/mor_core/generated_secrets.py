"""Secrets that a chart's job generates: creation, rotation and retirement, as changes of a Kubernetes Secret's text.

A Secret has a ledger beside its values. It remembers what was replaced, so that neither an older manifest nor a name
that is removed and added again brings a value back:

- A token has an epoch, which grows with each revocation, and the hashes of its revoked values.
- The keys of a key ring stay in it until they are retired: the first encrypts, all decrypt.

Tokens of scope ``service``, passwords and keys are held by running processes, so all their predecessors stay valid
until they are retired, after several rotations too. Any other token's predecessor ends with its rotation.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Collection, Iterable
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from mor_core.errors import Invalid
from mor_core.failures import describe
from mor_core.patterns import matching
from mor_core.token_file import hash_token, new_token
from mor_core.visibility import Scope
from mor_core.wire import Sha256, Wire

TOKENS_FILE = "tokens.json"
LEDGER = "ledger.json"
ALL = "all"

_Key = Annotated[str, matching(r"^[-._a-zA-Z0-9]{1,253}$", "1 to 253 letters, digits, '-', '.' and '_'")]


class WantedToken(Wire):
    """Token that a release declares."""

    name: str
    scope: Scope
    key: _Key | None = None
    """Key of the Secret that holds the generated token."""
    sha256: Sha256 | None = None
    """Hash of a token that was made elsewhere; nothing is generated then."""

    @model_validator(mode="after")
    def _one_source(self) -> WantedToken:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("give one of key and sha256")
        return self


class WantedSecret(Wire):
    """Secret that a release needs, and what is generated in it."""

    secret: str
    """Name of the Secret."""
    tokens: tuple[WantedToken, ...] = ()
    texts: tuple[_Key, ...] = ()
    """Keys of random texts whose hash another service stores; they are rotated only by name."""
    key_ring: _Key | None = None
    """Key of the ring of encryption keys."""
    users: tuple[str, ...] = ()
    """Users of the queue server, each with ``<user>-password`` and ``<user>-url``."""
    address: str = ""
    """Host and port of the queue server."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what can be rotated."""
        own = [token.key for token in self.tokens if token.key is not None]
        ring = [] if self.key_ring is None else [self.key_ring]
        return (*own, *self.texts, *ring, *map(_password, self.users))


class CredentialHistory(Wire):
    """Record of a token or password in the ledger."""

    epoch: int = Field(0, ge=0)
    """Number of revocations."""
    revoked: tuple[Sha256, ...] = ()
    """Hashes of the values that are not valid any more."""


class SecretLedger(Wire):
    """Memory of a Secret over rotations and manifests."""

    schema_: Literal["mor.secret_ledger/1"] = "mor.secret_ledger/1"
    credentials: dict[str, CredentialHistory] = Field(default_factory=dict)
    """Name of a token, or key of a password -> its history; names that are gone included."""
    keys: tuple[str, ...] = ()
    """Keys of the ring, the newest first."""
    retired_keys: tuple[Sha256, ...] = ()


class GeneratedSecret:
    """Text of a Secret while it is changed. ``data`` is the result, ``notes`` says what happened, without values.

    Raises:
        Invalid: the ledger or the list of tokens cannot be read.
    """

    def __init__(self, wanted: WantedSecret, data: dict[str, str]) -> None:
        self._wanted = wanted
        self.data = dict(data)
        self.notes: list[str] = []
        try:
            ledger = SecretLedger.model_validate_json(data.get(LEDGER, "{}"), extra="ignore")
        except ValidationError as error:
            raise Invalid(f"{LEDGER} of Secret {wanted.secret} cannot be read: {describe(error)}; restore it") from None
        self._histories = dict(ledger.credentials)
        self._keys = list(ledger.keys)
        self._retired_keys = list(ledger.retired_keys)
        self._settle()

    # ---- What is missing is made, what was revoked is replaced ----

    def _settle(self) -> None:
        rows = self._rows()
        for token in self._wanted.tokens:
            if token.key is not None:
                self._settle_value(token.key, token.name)
        self._remove_undeclared(rows)
        for key in self._wanted.texts:
            self._settle_value(key, key)
        for user in self._wanted.users:
            self._settle_value(_password(user), _password(user))
        if self._wanted.key_ring is not None:
            self._settle_ring(self._wanted.key_ring)
        if self._wanted.tokens:
            self._write_rows(rows)
        self._write_addresses_and_ledger()

    def _settle_value(self, key: str, name: str) -> None:
        """Generate the value under ``key`` where there is none, or a revoked one."""
        history = self._histories.get(name)
        found = self.data.get(key, "").strip()
        is_current = found not in self._former_passwords(key) and (
            history is None or hash_token(found) not in history.revoked
        )
        if found and is_current:
            self._histories.setdefault(name, CredentialHistory())
            return
        if found:
            self.notes.append(f"{key}: a former value came back; it is replaced")
        elif history is not None:
            self._histories[name] = history.model_copy(update={"epoch": history.epoch + 1})
        self._histories.setdefault(name, CredentialHistory())
        self.data[key] = new_token()
        self.notes.append(f"{key}: generated")

    def _remove_undeclared(self, rows: dict[str, list[str]]) -> None:
        """Revoke the tokens that no longer are declared, so that their names begin anew where they are added again."""
        if not self._wanted.tokens:
            return
        declared = {token.name for token in self._wanted.tokens}
        for name in sorted(set(rows) - declared):
            self._revoke(name, rows.pop(name))
            self.notes.append(f"token {name}: revoked, because it is not declared any more")
        keys = {token.key for token in self._wanted.tokens} | set(self._wanted.texts)
        elsewhere = {token.sha256 for token in self._wanted.tokens}
        for key in [key for key in self.data if key.endswith("-token") and key not in keys]:
            former = hash_token(self.data.pop(key).strip())
            if former not in elsewhere:
                self._revoke(key.removesuffix("-token"), [former])

    def _settle_ring(self, key: str) -> None:
        """Put keys that are new in front. One that was retired comes last, where it encrypts nothing."""
        found = [part.strip() for part in self.data.get(key, "").split(",") if part.strip()]
        unknown = [part for part in found if part not in self._keys]
        back = [part for part in unknown if hash_token(part) in self._retired_keys]
        self._keys = [part for part in unknown if part not in back] + self._keys + back
        if back:
            self.notes.append(f"{key}: a retired key came back; it decrypts only. Re-encrypt, then retire it again")
        if not self._keys:
            self._keys = [_new_key()]
            self.notes.append(f"{key}: generated")
        self.data[key] = ",".join(self._keys)

    # ---- Rotation and retirement ----

    def rotate(self, names: Collection[str]) -> None:
        """Replace what is named: keys of the Secret, or ``all``."""
        rows = self._rows()
        for token in self._wanted.tokens:
            if token.key is not None and _is_named(token.key, names):
                former = dict.fromkeys([hash_token(self.data[token.key]), *rows.get(token.name, [])])
                self.data[token.key] = new_token()
                kept = list(former) if token.scope is Scope.service else []
                if not kept:
                    self._revoke(token.name, former, always=True)
                rows[token.name] = [hash_token(self.data[token.key]), *kept]
                end = "its predecessor is valid until it is retired" if kept else "its predecessor is revoked"
                self.notes.append(f"{token.key}: rotated; {end}")
        for key in self._wanted.texts:
            if key in names:
                self._revoke(key, [hash_token(self.data[key])])
                self.data[key] = new_token()
                self.notes.append(f"{key}: rotated")
        for key in map(_password, self._wanted.users):
            if _is_named(key, names):
                self.data[_previous(key)] = "\n".join([self.data[key], *self._former_passwords(key)])
                self.data[key] = new_token()
                self.notes.append(f"{key}: rotated; its predecessor is valid until it is retired")
        ring = self._wanted.key_ring
        if ring is not None and _is_named(ring, names):
            self._keys.insert(0, _new_key())
            self.data[ring] = ",".join(self._keys)
            self.notes.append(f"{ring}: a new key encrypts; {len(self._keys) - 1} older ones decrypt until retired")
        self._write_rows(rows)
        self._write_addresses_and_ledger()

    def retire(self, names: Collection[str]) -> None:
        """End what predecessors of the named values are still valid. Keys of the ring only where it is named itself."""
        rows = self._rows()
        for token in self._wanted.tokens:
            if token.key is not None and _is_named(token.key, names):
                current = hash_token(self.data[token.key])
                if former := [digest for digest in rows.get(token.name, []) if digest != current]:
                    self._revoke(token.name, former)
                    rows[token.name] = [current]
                    self.notes.append(f"{token.key}: the predecessor is revoked")
        for key in map(_password, self._wanted.users):
            if _is_named(key, names) and self._retire_password(key):
                self.notes.append(f"{key}: the predecessor is revoked")
        ring = self._wanted.key_ring
        if ring is not None and ring in names and len(self._keys) > 1:
            self._retired_keys += [hash_token(key) for key in self._keys[1:]]
            self.notes.append(f"{ring}: {len(self._keys) - 1} older keys are retired")
            self._keys = self._keys[:1]
            self.data[ring] = self._keys[0]
        self._write_rows(rows)
        self._write_addresses_and_ledger()

    # ---- Parts of the Secret ----

    def _rows(self) -> dict[str, list[str]]:
        """Return the hashes in the list of tokens by name."""
        rows: dict[str, list[str]] = {}
        try:
            for row in json.loads(self.data.get(TOKENS_FILE, "[]")):
                rows.setdefault(row["name"], []).append(row["sha256"])
        except (ValueError, TypeError, KeyError) as error:
            raise Invalid(
                f"{TOKENS_FILE} of Secret {self._wanted.secret} cannot be read ({type(error).__name__}); restore it, "
                "or delete that key to have it written anew"
            ) from None
        return rows

    def _write_rows(self, rows: dict[str, list[str]]) -> None:
        """Write the list of tokens: of each declared one its value, and what of ``rows`` is not revoked."""
        if not self._wanted.tokens:
            return
        listed = []
        for token in self._wanted.tokens:
            current = hash_token(self.data[token.key]) if token.key is not None else token.sha256 or ""
            former = [digest for digest in rows.get(token.name, []) if digest != current]
            if token.scope is not Scope.service or token.key is None:
                self._revoke(token.name, former)
            history = self._histories.setdefault(token.name, CredentialHistory())
            if current in history.revoked:
                self.notes.append(f"token {token.name}: its sha256 was revoked; declare the hash of another token")
            for digest in [current, *former]:
                if digest not in history.revoked:
                    row = {"name": token.name, "scope": token.scope.value, "sha256": digest}
                    listed.append(row | ({"epoch": history.epoch} if history.epoch else {}))
        self.data[TOKENS_FILE] = json.dumps(listed)

    def _write_addresses_and_ledger(self) -> None:
        for user in self._wanted.users:
            self.data[f"{user}-url"] = f"redis://{user}:{self.data[_password(user)]}@{self._wanted.address}/0"
        ledger = SecretLedger(
            credentials=self._histories, keys=tuple(self._keys), retired_keys=tuple(self._retired_keys)
        )
        self.data[LEDGER] = ledger.model_dump_json()

    def _revoke(self, name: str, digests: Iterable[str], *, always: bool = False) -> None:
        """Record values that are not valid any more; their successors have a higher epoch."""
        history = self._histories.get(name, CredentialHistory())
        new = [digest for digest in digests if digest not in history.revoked]
        if new or always:
            self._histories[name] = CredentialHistory(epoch=history.epoch + 1, revoked=(*history.revoked, *new))

    def _former_passwords(self, key: str) -> list[str]:
        """Return the predecessors that are still valid; the Secret has one a line."""
        return self.data.get(_previous(key), "").splitlines()

    def _retire_password(self, key: str) -> bool:
        former = self._former_passwords(key)
        self.data.pop(_previous(key), None)
        self._revoke(key, map(hash_token, former))
        return bool(former)


def check_names(wanted: Iterable[WantedSecret], names: Collection[str]) -> None:
    """
    Raises:
        Invalid: a name is of nothing that is generated.
    """
    known = {name for secret in wanted for name in secret.names}
    if unknown := sorted(set(names) - known - {ALL}):
        raise Invalid(f"got {', '.join(unknown)}; name some of {', '.join(sorted(known))}, or {ALL}")


def _is_named(key: str, names: Collection[str]) -> bool:
    return key in names or ALL in names


def _password(user: str) -> str:
    return f"{user}-password"


def _previous(key: str) -> str:
    return f"{key}-previous"


def _new_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
