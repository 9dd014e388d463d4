"""Sampler of the current policy, through the rollout service's chat completions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import httpx
import pydantic_core
from mor_core.certificates import client_context
from mor_core.errors import Conflict
from mor_core.service_addresses import ROLLOUT
from mor_core.wire import Message

from mor_router.clients.http import BoundedHttpClient, bearer_client
from mor_router.clients.responses import ClientFailure, private
from mor_router.config import RouterSettings
from mor_router.learning.labels.judge_labeller import contents, openai_messages, written_texts

_BYTES_PER_TOKEN = 64
"""Bound on the bytes of one token in JSON, escapes included."""
_BYTES = 64 << 10
"""Bound on a response's bytes apart from its texts."""


class PolicySampler:
    """Client of the rollout service that serves the policy in training."""

    def __init__(self, settings: RouterSettings) -> None:
        if settings.policy_url is None:
            raise Conflict("MOR_POLICY_URL is not set; name the rollout service whose policy is sampled")
        self._settings = settings
        secret = settings.service_token
        tls = client_context("MOR_POLICY_CA_FILE", settings.policy_ca_file)
        transport = httpx.AsyncHTTPTransport(verify=tls, trust_env=False)
        self._http = BoundedHttpClient(bearer_client(transport, secret), settings.policy_url, secret, ROLLOUT)

    async def sample(
        self, messages: tuple[Message, ...], images: Mapping[str, bytes], timeout_s: float
    ) -> tuple[str, list[str]]:
        """Sample responses to one question; return the run and weights version that answered, and the responses.

        Raises:
            ClientFailure: no answer in time, or an unreadable one.
        """
        count = self._settings.refit_samples
        turns = openai_messages(messages, images)
        body = {
            "model": "policy",
            "messages": turns,
            "n": count,
            "max_tokens": self._settings.refit_max_tokens,
        }
        limit = _BYTES + count * self._settings.refit_max_tokens * _BYTES_PER_TOKEN
        try:
            async with asyncio.timeout(timeout_s):
                with private(written_texts(turns)):
                    _, answer = await self._http.post(
                        "/v1/chat/completions", json.dumps(body).encode(), limit, round(1000 * timeout_s)
                    )
        except TimeoutError as error:
            raise ClientFailure("timeout", f"the policy did not answer within {timeout_s:g} s") from error
        texts = contents(answer)
        return str(pydantic_core.from_json(answer).get("system_fingerprint") or "unknown"), texts

    async def version(self, timeout_s: float) -> str:
        """Return the run and weights version that is served now, in the form that ``sample`` returns.

        Raises:
            ClientFailure: no status in time, or an unreadable one.
        """
        try:
            async with asyncio.timeout(timeout_s):
                status = pydantic_core.from_json(await self._http.get("/v1/status", _BYTES, timeout_s))
                version = status["weights_version"]
        except TimeoutError as error:
            raise ClientFailure("timeout", f"no status of the policy within {timeout_s:g} s") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ClientFailure("schema", "/v1/status is no rollout service's; check MOR_POLICY_URL") from error
        return "base" if version is None else f"{status['run']}:{version}"

    async def close(self) -> None:
        await self._http.close()
