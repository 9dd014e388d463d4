"""Scripts of the charts' jobs, run against real services."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from mor_router.app import create_app
from mor_router.config import RouterSettings
from mor_trainer.app import create_app as create_control
from mor_trainer.config import ControlSettings

from tests.router.conftest import TOKENS, Start
from tests.router.endpoints import Endpoints
from tests.router.planted import jsonl, rows
from tests.trainer.kit import served, write_prompts

pytestmark = pytest.mark.anyio

HELM = Path(__file__).parent.parent.parent / "helm"


class Job:
    """Job of the chart, with its ConfigMap and its Secret in one folder."""

    def __init__(self, folder: Path, script: str, *, timeout_s: float = 60, **addresses: str) -> None:
        shutil.copytree(HELM / "mor" / "files", folder, dirs_exist_ok=True)
        (folder / "admin-token").write_text(TOKENS["admin"])
        self._folder = folder
        self._script = script
        self._environment = {f"MOR_{name.upper()}": address for name, address in addresses.items()}
        self._environment |= {"MOR_TIMEOUT_S": str(timeout_s), "MOR_ADMIN_TOKEN_FILE": str(folder / "admin-token")}

    async def run(self, wanted: dict[str, Any]) -> tuple[int, str]:
        """Run the script; return its exit status and output."""
        (self._folder / "wanted.json").write_text(json.dumps(wanted))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(self._folder / self._script),
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 120)
        return process.returncode or 0, output.decode()


async def test_declared_objectives_and_runs_are_created_once(
    settings: RouterSettings, redis_url: str, tiny_vlm: Path, tmp_path: Path
) -> None:
    anchors = tmp_path / "anchors.jsonl"
    anchors.write_bytes(jsonl(rows(20)))
    run = {"name": "first", "model": str(tiny_vlm), "prompts": str(write_prompts(tmp_path / "prompts", 4)), "steps": 1}
    objective = {"name": "helpful", "text": "Be right.", "audit_share": 0.5, "audited_by": "people"}
    wanted = {"objectives": [{**objective, "anchors": str(anchors)}], "runs": [run]}
    control = ControlSettings(
        redis_url=settings.redis_url, tokens_file=settings.tokens_file, runs_dir=tmp_path / "runs"
    )
    async with served(create_app(settings)) as router, served(create_control(control)) as trainer:
        job = Job(tmp_path / "job", "apply.py", router=router, control=trainer)
        status, output = await job.run(wanted)
        assert status == 0, output
        assert "objective helpful: created" in output
        assert "objective helpful: 20 anchors" in output
        assert "queued" in output
        assert await job.run(wanted) == (0, "")
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKENS['admin']}"}) as client:
            stored = (await client.get(f"{router}/v1/objectives/helpful")).json()
        assert {key: stored[key] for key in objective} == objective

        impossible = {"objectives": [{"name": "Not a name", "text": "x"}], "runs": []}
        status, output = await job.run(impossible)
        assert status == 1
        assert "answered 422" in output


async def test_helm_test_leaves_no_run_behind(settings: RouterSettings, tiny_vlm: Path, tmp_path: Path) -> None:
    control = ControlSettings(
        redis_url=settings.redis_url, tokens_file=settings.tokens_file, runs_dir=tmp_path / "runs"
    )
    prompts = write_prompts(tmp_path / "prompts", 4)
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "drive.py").write_text(
        "import check, json, pathlib, service\n"
        f"check._PROMPTS = {str(prompts)!r}\n"
        "given = json.loads((pathlib.Path(__file__).parent / 'wanted.json').read_text())\n"
        "control = service.Service('control')\n"
        "control.deadline += given['limit'] - 60\n"
        f"check.run(control, {str(tiny_vlm)!r})\n"
    )
    admin, worker = ({"Authorization": f"Bearer {TOKENS[scope]}"} for scope in ("admin", "service"))
    async with served(create_control(control)) as trainer, httpx.AsyncClient(base_url=trainer) as client:
        job = Job(folder, "drive.py", control=trainer)

        async def states() -> list[str]:
            return [run["state"] for run in (await client.get("/v1/runs", headers=admin)).json()]

        status, output = await job.run({"limit": 0.1})
        assert status == 1
        assert "is queued" in output, "no worker is there, which is a failure"
        assert await states() == ["stopped"]

        spec = {"name": "long", "model": str(tiny_vlm), "prompts": str(prompts), "steps": 1}
        (await client.post("/v1/runs", json=spec, headers=admin)).raise_for_status()
        status, output = await job.run({"limit": 60})
        assert (status, "wait for a worker" in output) == (0, True), output
        (await client.post("/v1/runs/claim", json={"worker": "w"}, headers=worker)).raise_for_status()
        status, output = await job.run({"limit": 60})
        assert (status, "skipped the run: all workers train: long" in output) == (0, True), output
        assert sorted(await states()) == ["running", "stopped"]


async def test_helm_test_names_a_client_that_does_not_answer(
    settings: RouterSettings, endpoints: Endpoints, start: Start, tmp_path: Path
) -> None:
    endpoint = endpoints.endpoint("clinic")
    async with start() as api:
        await api.enrol(endpoint)
    control = ControlSettings(
        redis_url=settings.redis_url, tokens_file=settings.tokens_file, runs_dir=tmp_path / "runs"
    )
    async with served(create_app(settings)) as router, served(create_control(control)) as trainer:
        job = Job(tmp_path / "job", "check.py", router=router, control=trainer)
        status, output = await job.run({"model": "", "engines": 0, "workers": 0})
        assert status == 0, output
        assert "control: ready" in output
        assert "reward of a group of two" in output
        endpoint.token = "another"
        status, output = await job.run({"model": "", "engines": 0, "workers": 0})
        assert status == 1
        assert "no reward for a group of two" in output or "do not answer: clinic" in output


async def test_helm_test_says_which_pods_have_not_started_also_without_clients(
    settings: RouterSettings, tmp_path: Path
) -> None:
    control = ControlSettings(
        redis_url=settings.redis_url, tokens_file=settings.tokens_file, runs_dir=tmp_path / "runs"
    )
    async with served(create_app(settings)) as router, served(create_control(control)) as trainer:
        job = Job(tmp_path / "job", "check.py", timeout_s=0.1, router=router, control=trainer, rollout=trainer)
        wanted = {"model": "", "engines": 1, "workers": 1}
        status, output = await job.run(wanted)
        assert status == 1
        assert "0 of 1 worker processes" in output and "component=worker" in output
        service = {"Authorization": f"Bearer {TOKENS['service']}"}
        async with httpx.AsyncClient(base_url=trainer, headers=service) as client:
            (await client.post("/v1/runs/claim", json={"worker": "w"})).raise_for_status()
            status, output = await job.run(wanted)
            assert status == 1
            assert "worker: w" in output
            assert "0 of 1 rollout processes" in output and "component=rollout" in output
            engine = {"name": "e", "model": "m", "max_model_len": 1, "max_images": 0, "max_image_bytes": 1}
            (await client.post("/v1/engines", json=engine)).raise_for_status()
        status, output = await job.run(wanted)
        assert status == 0, output
        assert "no client is active yet" in output
