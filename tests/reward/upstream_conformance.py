"""Contract checks of a reward service whose model is an upstream."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from mor_core.errors import MorError
from mor_reward.app import create_app
from mor_reward.config import RewardSettings
from mor_reward.conformance import run_checks
from mor_reward.conformance.endpoint import Endpoint

from tests.reward.served import TOKEN
from tests.trainer.kit import served

TEXTS_ALONE = {"images": "skipped: the service scores without pictures"}
"""The clause that does not concern an upstream which is sent no pictures."""


async def clauses_not_kept(url: str, tokens_file: Path, protocol: str, options: dict[str, Any]) -> dict[str, str]:
    """Serve the upstream at ``url`` on a real port; return the clauses that its service does not keep, with reasons."""
    settings = RewardSettings(
        upstream=protocol,
        upstream_url=url,
        upstream_options=options,
        tokens_file=tokens_file,
        max_items=2,
        max_responses=4,
        max_request_bytes=1 << 20,
        max_image_bytes=100_000,
    )

    def check(address: str) -> dict[str, str]:
        endpoint = Endpoint(address, TOKEN, timeout_s=60)
        try:
            found = list(run_checks(endpoint))
        except MorError as error:
            raise AssertionError(str(error)) from error
        finally:
            endpoint.close()
        return {one.check: f"{one.outcome}: {one.detail}" for one in found if one.outcome != "kept"}

    async with served(create_app(settings)) as address:
        return await asyncio.to_thread(check, address)
