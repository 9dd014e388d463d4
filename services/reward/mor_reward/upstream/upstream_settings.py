"""Address, key and limits of an upstream, with its protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mor_core.errors import Invalid
from mor_core.failures import describe
from mor_core.proxies import ProxyAddress
from mor_core.wire import Documented
from pydantic import AfterValidator, AnyHttpUrl, Field, ValidationError

from mor_reward.config import RewardSettings
from mor_reward.upstream.chat_judge import ChatJudge
from mor_reward.upstream.classify import Classify
from mor_reward.upstream.cross_encoders import Rerank, Score
from mor_reward.upstream.open_inference import OpenInference
from mor_reward.upstream.openrlhf import OpenRLHF
from mor_reward.upstream.predict import Predict
from mor_reward.upstream.verify import Verify

AnyUpstream = Annotated[
    OpenRLHF | Classify | Score | Rerank | Predict | OpenInference | ChatJudge | Verify, Field(discriminator="protocol")
]
"""Protocols of upstreams."""


def _without_query(url: AnyHttpUrl) -> AnyHttpUrl:
    if url.query is not None or url.fragment is not None:
        raise ValueError("parameters after '?' or '#' belong to the path of the calls; give them with path=/…?…")
    return url


class UpstreamSettings(Documented):
    """Upstream of a reward service."""

    protocol: AnyUpstream
    url: Annotated[AnyHttpUrl, AfterValidator(_without_query)]
    """Address of the upstream, without the path of its calls."""
    key_file: Path | None = None
    """File with the bearer token of the upstream."""
    template: str | None = None
    """Checkpoint whose chat template makes the texts; plain text without it."""
    sees_pictures: bool = False
    """Send pictures."""
    version: str | None = Field(None, max_length=200)
    """Version of the served model; by default a hash of what the upstream says of it."""
    concurrency: int = Field(32, ge=1, le=4096)
    """Calls at a time."""
    timeout_s: float = Field(60.0, gt=0)
    """Longest call, seconds, where the caller sets no earlier deadline."""
    proxy: ProxyAddress | None = None
    """HTTP proxy on the way to the upstream."""

    @classmethod
    def of(cls, settings: RewardSettings) -> UpstreamSettings:
        """Return the upstream that the settings of a service name.

        Raises:
            Invalid: a setting does not fit the protocol.
        """
        named = {} if settings.upstream_model is None else {"model": settings.upstream_model}
        try:
            return cls.model_validate(
                {
                    "protocol": {**settings.upstream_options, **named, "protocol": settings.upstream},
                    "url": settings.upstream_url,
                    "key_file": settings.upstream_key_file,
                    "template": settings.template,
                    "sees_pictures": settings.sees_pictures,
                    "version": settings.upstream_version,
                    "concurrency": settings.calls_at_once,
                    "timeout_s": settings.call_timeout_s,
                    "proxy": settings.upstream_proxy,
                }
            )
        except ValidationError as error:
            raise Invalid(
                f"--upstream {settings.upstream}: {describe(error)}; settings of a protocol are given with "
                "--upstream-set name=value (MOR_UPSTREAM_OPTIONS)"
            ) from error
