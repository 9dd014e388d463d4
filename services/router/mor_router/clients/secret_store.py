"""Encryption of the clients' secrets at rest: Fernet, with any number of older keys that still decrypt."""

from __future__ import annotations

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from mor_core.errors import Invalid
from mor_core.failures import quote_failure
from pydantic import SecretStr


class SecretStore:
    """Cipher for the clients' secrets: the first key encrypts, every key decrypts.

    Raises:
        Invalid: no key, or one that is not a Fernet key.
    """

    def __init__(self, keys: SecretStr) -> None:
        parts = [part.strip() for part in keys.get_secret_value().split(",") if part.strip()]
        if not parts:
            raise Invalid("MOR_SECRET_KEY is not set; make a key with 'mor-router key' and keep it outside of Redis")
        try:
            self._fernet = MultiFernet([Fernet(part) for part in parts])
        except ValueError as error:
            raise Invalid(f"MOR_SECRET_KEY: {quote_failure(error)}; make a key with 'mor-router key'") from error

    def encrypt(self, secret: SecretStr) -> str:
        return self._fernet.encrypt(secret.get_secret_value().encode()).decode()

    def decrypt(self, encrypted: str, client: str) -> SecretStr:
        """Decrypt the secret of ``client``, whose name is used in the error only.

        Raises:
            Invalid: encrypted with a key that is not in ``MOR_SECRET_KEY``.
        """
        try:
            return SecretStr(self._fernet.decrypt(encrypted).decode())
        except InvalidToken as error:
            raise Invalid(
                f"the secret of client {client!r} was encrypted with another key; "
                "put that key behind the current one in MOR_SECRET_KEY, or rotate the client's token"
            ) from error

    def reencrypt(self, encrypted: str, client: str) -> str:
        """Encrypt the same secret with the first key."""
        return self.encrypt(self.decrypt(encrypted, client))
