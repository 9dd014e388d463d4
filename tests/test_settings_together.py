"""Settings that cannot work are refused at the start, with what to do about it."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from fsspec.registry import known_implementations
from mor_core.errors import Invalid
from mor_core.object_stores import EXTRAS
from mor_core.process import load
from mor_core.settings import Settings, StreamSettings
from mor_rollout.config import RolloutSettings
from mor_router.config import RouterSettings
from mor_trainer.config import ControlSettings, WorkerSettings

CORE = Path(__file__).parents[1] / "packages/mor_core/pyproject.toml"
ENGINES = {"transfer_engines": ("http://engine-0.engines:8200",)}
MODEL = {"model": "any/model"}


@pytest.mark.parametrize(
    ("kind", "given", "cure"),
    [
        (StreamSettings, {"blob_dir": "dropbox://bucket/blobs"}, "install it beside mor-core"),
        (StreamSettings, {"blob_dir": "memory://blobs"}, "an object store that all share"),
        (StreamSettings, {"blob_dir": "s4://bucket"}, "one of abfs"),
        (StreamSettings, {"blob_dir": "simplecache::memory://blobs"}, "an object store that all share"),
        (StreamSettings, {"redis_url": "redis+cluster://host/3"}, "database 0"),
        (WorkerSettings, {**ENGINES, "transfer_address": "127.0.0.1"}, "MOR_TRANSFER_ADDRESS is 127.0.0.1"),
        (WorkerSettings, {**ENGINES, "transfer_address": "fd00::7"}, "engines pull the files"),
        (WorkerSettings, {**ENGINES, "transfer_address": "10.0.0.7:29500"}, "without a port"),
        (WorkerSettings, {"transfer_engines": ("engine-0:8200",)}, "http://host:port"),
        (RolloutSettings, {**MODEL, "weight_transfer": "nccl", "backend": "transformers"}, "backend='vllm'"),
        (RolloutSettings, {**MODEL, "tensor_parallel_size": 2, "backend": "transformers"}, "MOR_BACKEND=vllm"),
        (RolloutSettings, {**MODEL, "generate_timeout_s": 1800}, "MOR_ATTEMPT_TIMEOUT_S"),
        (RouterSettings, {"deadline_s": 60, "attempt_timeout_s": 30}, "MOR_ATTEMPT_TIMEOUT_S"),
        (RouterSettings, {"client_cert_file": "/tls.crt"}, "both of MOR_CLIENT_CERT_FILE"),
        (RouterSettings, {"client_key_file": "/tls.key"}, "both of MOR_CLIENT_CERT_FILE"),
        (RouterSettings, {"circuit_least_calls": 30}, "MOR_CIRCUIT_CALLS"),
        (RouterSettings, {"circuit_open_s": 700}, "MOR_CIRCUIT_LONGEST_OPEN_S"),
        (RouterSettings, {"refit_interval_s": 60}, "MOR_POLICY_URL"),
        (RouterSettings, {"metrics_host": "::"}, "MOR_METRICS_PORT"),
        (RouterSettings, {"max_request_bytes": 1 << 30}, "MOR_MAX_BODY_MEMORY_BYTES"),
        (ControlSettings, {"alert_webhook_token": "secret"}, "MOR_ALERT_WEBHOOK_URL"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_cure(
    kind: type[Settings], given: dict[str, Any], cure: str
) -> None:
    with pytest.raises(Invalid) as refused:
        load(kind, **given)
    assert cure in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        {"transfer_engines": ("http://127.0.0.1:8200", "http://[::1]:8200")},
        {**ENGINES, "transfer_address": "10.0.0.7"},
        {"blob_dir": "relative/folder"},
        {"blob_dir": "file:///srv/blobs"},
    ],
)
def test_settings_that_work_are_taken(given: dict[str, Any]) -> None:
    assert load(WorkerSettings, **given)


def test_a_library_that_is_missing_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    for protocol, extra in EXTRAS.items():
        with pytest.raises(Invalid, match=rf"mor-core\[{extra}\]"):
            load(StreamSettings, blob_dir=f"{protocol}://bucket/blobs")


def test_each_extra_installs_the_library_that_its_protocols_need() -> None:
    extras = tomllib.loads(CORE.read_text())["project"]["optional-dependencies"]
    for protocol, extra in EXTRAS.items():
        library = known_implementations[protocol]["class"].partition(".")[0]
        assert any(line.startswith(library) for line in extras[extra]), (protocol, extra)
    root = CORE.parents[2]
    for service in ("trainer", "rollout", "router"):
        image = (root / "services" / service / "Dockerfile").read_text()
        assert all(extra in image for extra in {*EXTRAS.values()}), f"the image of {service} lacks a library"
