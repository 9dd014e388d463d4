"""Upstream as a reward model of this service: groups in, raw scores out, with its health and version."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pydantic_core
import structlog
from mor_core.errors import Invalid, MorError

from mor_reward.group_scorer import ModelAway
from mor_reward.upstream.connection import Connection, read_key
from mor_reward.upstream.rendered_text import in_template, plain_text
from mor_reward.upstream.upstream_protocol import Group
from mor_reward.upstream.upstream_settings import UpstreamSettings

if TYPE_CHECKING:
    from mor_reward.backbones import Example

_FRESH_S = 5.0
"""Age up to which a probe's result stands, seconds: readiness is asked every few seconds by several."""
_IDENTITY_S = 60.0
"""Age up to which the upstream's version stands, seconds: a retrained model is noticed within a minute."""
_UNKNOWN = "unknown"
"""Version of a model of which the upstream says nothing."""
_MOVING = {"created", "last_accessed", "permission", "loaded_at", "uptime"}
"""Fields of such a description that change without the model."""

log = structlog.get_logger(__name__)


def check_upstream(settings: UpstreamSettings) -> None:
    """Check what takes neither a call nor a library of models.

    Raises:
        Invalid: the key cannot be read, or the protocol carries no pictures.
    """
    protocol = settings.protocol
    if settings.sees_pictures and not protocol.shows_pictures:
        raise Invalid(f"the protocol {protocol.protocol!r} carries texts only; leave --sees-pictures out")
    if settings.key_file is not None:
        try:
            read_key(settings.key_file)
        except ModelAway as error:
            raise Invalid(f"--upstream-key-file {settings.key_file}: {error}") from error


class UpstreamScorer:
    """Scorer that calls an upstream."""

    def __init__(self, settings: UpstreamSettings) -> None:
        """Raises:
        Invalid: the template or the key cannot be read, or the protocol carries no pictures.
        """
        self._settings = settings
        self._protocol = settings.protocol
        self.uses_pictures = settings.sees_pictures
        check_upstream(settings)
        self._render = (
            plain_text
            if settings.template is None
            else in_template(settings.template, own_tokens=self._protocol.own_tokens)
        )
        self._connection = Connection(settings)
        self._version = settings.version or _UNKNOWN
        self._version_at = -float("inf")
        self._problem: str | None = "the upstream was not probed yet"
        self._probed_at = -float("inf")
        self._probing = asyncio.Lock()

    @property
    def version(self) -> str:
        """Version of the upstream's model: the given one, or a hash of its description."""
        return self._version

    async def close(self) -> None:
        await self._connection.close()

    def context(self, group: Sequence[Example]) -> str:
        """See ``GroupScorer.context``."""
        return self._protocol.context([example.response for example in group], group[0].objective)

    async def score(self, group: Sequence[Example], *, caller: str, deadline: float) -> Sequence[float | None]:
        """See ``GroupScorer.score``."""
        first = group[0]
        sent = Group(
            first.messages,
            first.pictures if self.uses_pictures else (),
            tuple(example.response for example in group),
            first.objective,
            self._render,
        )
        return await self._protocol.score(sent, self._connection.calls(caller, deadline))

    async def problem(self) -> str | None:
        """Return why the upstream cannot be called; ``None`` while it can. Probes it every few seconds at most."""
        async with self._probing:
            if time.monotonic() - self._probed_at > _FRESH_S:
                self._problem = await self._connection.problem(self._protocol.health)
                self._probed_at = time.monotonic()
                if self._problem is None:
                    await self._update_version()
        return self._problem

    async def _update_version(self) -> None:
        path = self._protocol.version_path
        if self._settings.version is not None or path is None or time.monotonic() - self._version_at < _IDENTITY_S:
            return
        self._version_at = time.monotonic()
        try:
            described = pydantic_core.from_json(await self._connection.describe(path))
        except (MorError, ValueError):  # a protocol's servers need not have the path
            return
        model = self._settings.protocol.model
        named = json.dumps([model, _lasting(_entry(described, model))], sort_keys=True)
        version = hashlib.sha256(named.encode()).hexdigest()[:16]
        if self._version not in (_UNKNOWN, version):
            log.warning("the upstream serves another model", before=self._version, now=version)
        self._version = version


def _entry(described: Any, model: str | None) -> Any:
    """Return the entry of ``model`` in a list of OpenAI's shape: others come and go. Else the whole description."""
    entries = described.get("data") if isinstance(described, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("id") == model:
            return entry
    return described


def _lasting(described: Any) -> Any:
    """Return a description without the fields that change while the model does not."""
    if isinstance(described, dict):
        return {name: _lasting(value) for name, value in described.items() if name not in _MOVING}
    if isinstance(described, list):
        return [_lasting(value) for value in described]
    return described
