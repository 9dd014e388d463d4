"""Resources that all rooms of the router share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import torch
from mor_core.streams import connect
from redis.asyncio import Redis

from mor_router.audit import AuditLog
from mor_router.config import RouterSettings
from mor_router.embedding import Embedder, build_embedder


@dataclass(frozen=True)
class Resources:
    """Settings, connections and models of one router process."""

    settings: RouterSettings
    redis: Redis
    audit: AuditLog
    embedder: Embedder


@asynccontextmanager
async def open_resources(settings: RouterSettings) -> AsyncIterator[Resources]:
    """Load the embedding models and connect to Redis.

    Raises:
        Invalid: an embedding model cannot be loaded.
    """
    torch.set_num_threads(settings.torch_threads)
    embedder = await asyncio.to_thread(
        build_embedder, settings.embed_text_model, settings.embed_image_model, settings.embed_cache
    )
    redis = connect(settings)
    try:
        yield Resources(settings, redis, AuditLog(settings.audit_log), embedder)
    finally:
        await redis.aclose()
