"""Weight transfers by vLLM's own handshake, from the trainer to a real engine, over gloo instead of NCCL."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from mor_core.auth import hash_token
from mor_core.errors import Unavailable
from mor_core.run_announcements import announce
from mor_core.wire import WeightsRef
from mor_rollout import environment
from mor_rollout.app import create_app
from mor_rollout.engines.vllm import arguments
from mor_trainer.config import WorkerSettings
from mor_trainer.weights.broadcast import WeightBroadcast
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis

from tests.certificates import NO_AUTHORITIES
from tests.ports import free_port
from tests.rollout.conftest import settings_for
from tests.rollout.publisher import Publisher
from tests.rollout.reference import Reference, base_tensors, moved
from tests.rollout.run import Run, worst
from tests.tiny_models import build_tiny_vlm

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
AGREE = 1e-4
"""Largest difference of log-probabilities in float32 that rounding explains, nats."""
TOKEN = {"Authorization": "Bearer service-token"}
NOWHERE = "http://127.0.0.1:9/nothing"
"""No file is there, so weights that are sampled from came by broadcast."""


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_vlm(tmp_path_factory.mktemp("tied") / "smolvlm", tied=True, kind="smolvlm")


@pytest.fixture(scope="module")
def address(tied: Path, tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[str]:
    """Address of a rollout service whose worker uses gloo instead of NCCL."""
    folder = tmp_path_factory.mktemp("service")
    token = {"name": "service", "scope": "service", "sha256": hash_token("service-token")}
    (folder / "tokens.json").write_text(json.dumps([token]))
    settings = settings_for(
        tied,
        folder,
        weight_transfer="nccl",
        self_test=False,
        watch_interval_s=0.1,
        redis_url=redis_url,
        tokens_file=folder / "tokens.json",
        port=free_port(),
    )
    environment.prepare(settings)
    arguments_of = arguments.engine_arguments

    def with_gloo(*parts: Any) -> dict[str, Any]:
        return arguments_of(*parts) | {"worker_extension_cls": "tests.rollout.gloo.GlooWeightsExtension"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arguments, "engine_arguments", with_gloo)
        patch.syspath_prepend(
            Path(__file__).parents[2]
        )  # vLLM's worker, which imports the tests' extension, inherits it
        app = create_app(settings)
        server = uvicorn.Server(uvicorn.Config(app, port=settings.port, log_config=None))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{settings.port}"
        deadline = time.monotonic() + 120
        while not (server.started and httpx.get(f"{url}/readyz", verify=NO_AUTHORITIES).is_success):
            assert app.state.service.failure is None, app.state.service.failure
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield url
        server.should_exit = True
        thread.join(timeout=30)


@pytest.fixture(autouse=True)
def gloo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Use gloo instead of NCCL in the trainer."""
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory, nccl_engine

    from tests.rollout import gloo

    monkeypatch.setitem(WeightTransferTrainerFactory._registry, "nccl", lambda: gloo.GlooTrainer)
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: gloo.Group(info, 0))
    return gloo


@pytest.fixture
def trainer(address: str) -> WorkerSettings:
    return WorkerSettings(transfer_engines=(address,), service_token=SecretStr("service-token"), transfer_timeout_s=30)


@pytest.fixture
def reference(tied: Path) -> Reference:
    return Reference(tied)


@pytest.fixture
async def run(redis: Redis, run_name: str, tied: Path) -> Run:
    await announce(redis, run_name, str(tied))
    return Run(redis, run_name)


@pytest.fixture
def publisher(tmp_path: Path, tied: Path) -> Iterator[Publisher]:
    publisher = Publisher(tmp_path / "published", tied)
    yield publisher
    publisher.close()


def status(address: str) -> dict[str, Any]:
    return dict(httpx.get(f"{address}/v1/status", headers=TOKEN).raise_for_status().json())


async def test_broadcast_weights_are_sampled_from(
    address: str, trainer: WorkerSettings, run: Run, reference: Reference, publisher: Publisher, tied: Path
) -> None:
    broadcast = WeightBroadcast(trainer, run.name, str(tied), attempt=2)
    for version in (1, 2):
        tensors = moved(base_tensors(tied), version, "text_model")
        await asyncio.to_thread(broadcast.send, version, tensors)
        now = status(address)
        assert (now["run"], now["weights_version"]) == (run.name, version)
        assert (now["weights"]["unverified"], now["weights"]["mismatched"]) == (0, [])
        group = f"g{version}"
        await run.issue(group, WeightsRef(version=version))
        rollout = (await run.rollouts(1))[group]
        assert rollout.versions == (version,)
        reference.use(tensors)
        assert await worst(run, rollout, reference) < AGREE
    files = moved(base_tensors(tied), 3, "layers.0")
    await run.issue("g3", publisher.publish(run.name, 3, files))
    reference.use(files)
    assert await worst(run, (await run.rollouts(1))["g3"], reference) < AGREE, "files replace what was broadcast"
    broadcast.close()
    superseded = WeightBroadcast(trainer, run.name, str(tied), attempt=1)
    with pytest.raises(Unavailable, match=r"attempt 1 at run .+ is superseded: attempt 2 has sent weights"):
        await asyncio.to_thread(superseded.send, 4, files)
    superseded.close()
    assert status(address)["weights_version"] == 3


async def test_a_restarted_trainer_makes_a_new_group(
    address: str, trainer: WorkerSettings, run: Run, tied: Path
) -> None:
    tensors = moved(base_tensors(tied), 1, "text_model")
    for version in (1, 2):
        broadcast = WeightBroadcast(trainer, run.name, str(tied))
        await asyncio.to_thread(broadcast.send, version, tensors)
        broadcast.close()
    assert status(address)["weights_version"] == 2


async def test_damaged_tensors_are_refused_and_the_previous_version_stays(
    address: str, trainer: WorkerSettings, run: Run, reference: Reference, publisher: Publisher, tied: Path, gloo: Any
) -> None:
    before = moved(base_tensors(tied), 1)
    await run.issue("g1", publisher.publish(run.name, 1, before))
    await run.rollouts(1)
    tensors = moved(base_tensors(tied), 2, "text_model")
    name = next(name for name in tensors if "q_proj" in name)
    gloo.GlooTrainer.damage = staticmethod(lambda sent, tensor: tensor * 2 if sent == name else tensor)
    broadcast = WeightBroadcast(trainer, run.name, str(tied))
    try:
        with pytest.raises(Unavailable, match=f"tensor '{name}' was not received as it was sent"):
            await asyncio.to_thread(broadcast.send, 2, tensors)
    finally:
        broadcast.close()
        gloo.GlooTrainer.damage = staticmethod(lambda _, tensor: tensor)
    assert status(address)["weights_version"] == 1
    await run.issue("g4", WeightsRef(version=1))
    reference.use(before)
    assert await worst(run, (await run.rollouts(1))["g4"], reference) < AGREE


def test_calls_out_of_order_are_refused(address: str, tied: Path) -> None:
    with httpx.Client(base_url=address, headers=TOKEN) as http:
        assert http.post("/v1/transfer/end", json={"run": "r", "version": 1, "tensors": {}}).status_code == 409
        assert http.post("/v1/transfer/begin", json={"run": "r", "base": "another/model"}).status_code == 422
    assert httpx.get(f"{address}/v1/transfer").status_code == 401


def test_only_vllm_takes_broadcasts(tied: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="weight_transfer='nccl' needs backend='vllm', got 'transformers'"):
        settings_for(tied, tmp_path, weight_transfer="nccl", backend="transformers")
