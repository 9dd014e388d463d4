"""The whole loop on one GPU. The engine is transformers, which needs no separate build for each accelerator."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.conftest import Valkey
from tests.e2e.processes import CLIENT_TOKEN, TOKENS, Processes
from tests.trainer.kit import make_spec, write_prompts

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.timeout(240),
]
ADMIN = {"Authorization": f"Bearer {TOKENS['operator'][0]}"}


@pytest.mark.parametrize("tuning", [{"kind": "full"}, {"kind": "lora", "rank": 4}], ids=["full", "lora"])
@pytest.mark.parametrize(("dtype", "off"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_the_trainer_finds_the_log_probabilities_that_the_engine_sampled_with(
    tmp_path: Path, tiny_vlm: Path, valkey: Valkey, dtype: str, off: float, tuning: dict[str, Any]
) -> None:
    processes = Processes(tmp_path, valkey.url, tiny_vlm)
    on_cuda = {"MOR_DEVICE": "cuda"}
    try:
        scorer = f"{Path(__file__).with_name('scorers.py')}:vowels"
        client = processes.serve("client", "mor-reward", "serve", "--function", scorer)
        rollout = {"MOR_BACKEND": "transformers", "MOR_DTYPE": dtype, **on_cuda}
        control = processes.serve("control", "mor-trainer", "serve")
        processes.environment["MOR_CONTROL_URL"] = control
        processes.serve("rollout", "mor-rollout", "serve", **rollout)
        router = processes.serve("router", "mor-router", "serve")
        processes.start("worker", "mor-trainer", "work", MOR_PRECISION=dtype, MOR_POLL_S="0.2", **on_cuda)

        def call(method: str, url: str, body: Any = None) -> Any:
            response = httpx.request(method, url, json=body, headers=ADMIN, timeout=60)
            assert response.is_success, response.text
            return response.json()

        enrolment = {"name": "client", "url": client, "domains": "shapes", "token": CLIENT_TOKEN}
        call("POST", f"{router}/v1/clients", enrolment)
        call("PATCH", f"{router}/v1/clients/client", {"state": "active", "reason": "no anchors in this test"})
        spec = make_spec(tiny_vlm, write_prompts(tmp_path, 12), steps=4, tuning=tuning)
        run = call("POST", f"{control}/v1/runs", spec.model_dump(mode="json"))["id"]
        deadline = time.monotonic() + 120
        while (snapshot := call("GET", f"{control}/v1/runs/{run}"))["state"] != "finished":
            assert snapshot["state"] != "failed", f"{snapshot['error']}\n{processes.log('worker')}"
            assert time.monotonic() < deadline, f"{snapshot}\n{processes.log('worker')}\n{processes.log('rollout')}"
            time.sleep(0.2)
        points = call("GET", f"{control}/v1/runs/{run}/metrics")["points"]
        assert [point["sampled_by"] for point in points] == [[0], [1], [2], [3]]
        assert [point["importance_ratio_mean"] for point in points] == pytest.approx([1.0] * len(points), abs=off)
        if dtype == "float32":
            assert all(point["importance_ratio_max"] < 1.01 for point in points)
    finally:
        processes.stop()
