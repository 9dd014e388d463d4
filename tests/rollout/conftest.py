"""Fixtures of the rollout tests: one vLLM engine for the session, and a publisher of weights."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from mor_rollout import environment
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import Engine
from mor_rollout.swaps import PolicySwapper
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_rollout.weights.pull import WeightsStore

from tests.rollout.publisher import URL, Publisher
from tests.rollout.reference import Reference, make_adapter


def settings_for(model: Path, folder: Path, **changes: object) -> RolloutSettings:
    values = {
        "model": str(model),
        "max_model_len": 256,
        "kv_cache_bytes": 64 << 20,
        "weights_dir": folder / "weights",
        "pull_timeout_s": 20.0,
        "control_url": URL,
        "service_token": "secret",
        "log_level": "error",
    }
    return RolloutSettings(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def settings(tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> RolloutSettings:
    settings = settings_for(tiny_vlm, tmp_path_factory.mktemp("rollout"))
    environment.prepare(settings)
    return settings


@pytest.fixture(scope="session")
def base(settings: RolloutSettings) -> BaseCheckpoint:
    return BaseCheckpoint(settings.model)


@pytest.fixture(scope="session")
def codec(settings: RolloutSettings, base: BaseCheckpoint) -> PromptCodec:
    return PromptCodec(settings, base)


@pytest.fixture(scope="session")
async def started(settings: RolloutSettings, base: BaseCheckpoint, codec: PromptCodec) -> AsyncIterator[Engine]:
    from mor_rollout.engines.vllm.vllm_engine import VllmEngine

    engine = VllmEngine(settings, base, codec)
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture
async def engine(started: Engine) -> Engine:
    """The vLLM engine with the base checkpoint."""
    await started.load(None)
    return started


@pytest.fixture(scope="session")
def reference(tiny_vlm: Path) -> Reference:
    return Reference(tiny_vlm)


@pytest.fixture
def publisher(tmp_path: Path, tiny_vlm: Path) -> Iterator[Publisher]:
    publisher = Publisher(tmp_path / "published", tiny_vlm)
    yield publisher
    publisher.close()


@pytest.fixture
async def store(settings: RolloutSettings, base: BaseCheckpoint, tmp_path: Path) -> AsyncIterator[WeightsStore]:
    store = WeightsStore(settings.model_copy(update={"weights_dir": tmp_path / "cache"}), base)
    yield store
    await store.aclose()


@pytest.fixture
async def swapper(settings: RolloutSettings, engine: Engine, store: WeightsStore) -> PolicySwapper:
    return PolicySwapper(settings, engine, store)


@pytest.fixture(scope="session")
def adapter(tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_vlm, tmp_path_factory.mktemp("adapter"), 1)
