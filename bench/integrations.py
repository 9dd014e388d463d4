"""Measurement of the mixture as the reward of other trainers: responses one by one, pictures that travel once, TRL.

``python bench/integrations.py`` writes ``bench/results/integrations.json``. The router is a process, the clients are
endpoints that take ``--client-s`` for a request. In each round every side runs once, in turns of alternating order:

- ``one_call``: the groups in one call of ``/v1/reward``;
- ``single_calls``: each response in a call of its own, at ``/v1/adapters/verify``, all at the same time;
- ``bare_calls``: as many calls, with the same token, of a route that does nothing: what HTTP alone takes;
- ``new_pictures``, ``held_pictures``: the groups by the SDK, each with a picture that the router lacks, or has;
- ``trl_local``, ``trl_mixture``: steps of one training by TRL, rewarded by a local function that takes
  ``--client-s``, or by the mixture (``bench/trl_rewards.py``). TRL is installed into an environment below ``--state``.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import trl_baseline
from machine import end_children_on_sigterm, record
from mor_client import Mor
from mor_client.config import ClientSettings
from mor_client.rewards import RewardGroup
from PIL import Image
from pydantic import SecretStr

sys.path.append(str(Path(__file__).parent.parent))

from tests.conftest import Valkey
from tests.e2e.processes import TOKENS, Processes
from tests.router.endpoints import TOKEN, Endpoints
from tests.tiny_models import build_tiny_vlm

_ADMIN = {"Authorization": f"Bearer {TOKENS['operator'][0]}"}
_TRAINER = TOKENS["trainer"][0]
_PICTURE_SHAPE = (768, 768, 3)
"""Height, width and channels of a picture: as noise, 1.7 MiB in PNG, as much as a telephone's photograph."""
_TIMEOUT_S = 120.0


@contextmanager
def router(client_s: float, clients: int) -> Iterator[str]:
    """Run a router with enrolled clients, and yield its address."""
    endpoints = Endpoints()
    with tempfile.TemporaryDirectory(prefix="mor-bench-") as name:
        folder = Path(name)
        (folder / "valkey").mkdir()
        valkey = Valkey(folder / "valkey")
        processes = Processes(folder, valkey.url, folder)
        try:
            address = processes.serve("router", "mor-router", "serve", MOR_WORKER="false")
            for number in range(clients):
                endpoint = endpoints.endpoint(f"client-{number}")
                body = {"name": endpoint.name, "url": endpoint.url, "domains": "", "token": TOKEN, "state": "active"}
                httpx.post(f"{address}/v1/clients", json=body, headers=_ADMIN, timeout=60).raise_for_status()
                endpoint.delay_s = client_s
            yield address
        finally:
            processes.stop()
            valkey.kill()
            endpoints.stop()


class Sides:
    """The same groups, with prompts that no earlier round had, in each of the measured ways."""

    def __init__(self, address: str, groups: int, size: int) -> None:
        self._address = address
        self._groups = groups
        self._size = size
        self._round = 0
        settings = ClientSettings(router_url=address, token=SecretStr(_TRAINER))
        self._mor = Mor(settings)

    def prompts(self) -> list[str]:
        self._round += 1
        return [f"Question {number} of round {self._round}?" for number in range(self._groups)]

    def responses(self) -> list[str]:
        return [f"answer {number}" for number in range(self._size)]

    async def one_call(self) -> float:
        items = [
            {"item_id": prompt, "messages": [{"role": "user", "content": prompt}], "responses": self.responses()}
            for prompt in self.prompts()
        ]
        seconds, (answer,) = await self._timed("/v1/reward", [{"items": items}])
        assert all(item["status"] == "ok" for item in answer["items"]), answer
        return seconds

    async def single_calls(self) -> float:
        calls = [_verify_body(prompt, response) for prompt in self.prompts() for response in self.responses()]
        seconds, answers = await self._timed(f"/v1/adapters/verify?group_size={self._size}", calls)
        refused = [answer for answer in answers if "reward" not in answer]
        assert not refused, refused[0]
        return seconds

    async def bare_calls(self) -> float:
        seconds, _ = await self._timed("/v1/about", [None] * self._groups * self._size)
        return seconds

    async def _timed(self, path: str, bodies: Sequence[dict[str, Any] | None]) -> tuple[float, list[dict[str, Any]]]:
        """Send requests at the same time on open connections; return the seconds until the last answer, and all.

        The trainers' own HTTP clients would be most of the work on this machine, so the requests are ready bytes.
        """
        host, _, port = self._address.removeprefix("http://").partition(":")
        requests = [_request(path, body) for body in bodies]
        streams = [await asyncio.open_connection(host, int(port)) for _ in requests]
        begun = time.perf_counter()
        answers = await asyncio.gather(
            *(_exchange(*stream, request) for stream, request in zip(streams, requests, strict=True))
        )
        seconds = time.perf_counter() - begun
        for _, writer in streams:
            writer.close()
        return seconds, [json.loads(answer) for answer in answers]

    async def pictures(self) -> tuple[float, float]:
        """Return the seconds of a call with pictures that the router lacks, and of the same call again."""
        groups = [RewardGroup.of(prompt, self.responses(), images=[_picture()]) for prompt in self.prompts()]
        seconds = []
        for _ in range(2):
            begun = time.perf_counter()
            results = await self._mor.rewards.score_async(groups)
            seconds.append(time.perf_counter() - begun)
            assert all(result.required() for result in results)
        return seconds[0], seconds[1]


def _request(path: str, body: dict[str, Any] | None) -> bytes:
    """Return a POST with a body, or a GET without one, as bytes."""
    head = (
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: router\r\nAuthorization: Bearer {_TRAINER}\r\n"
    )
    if body is None:
        return f"{head}\r\n".encode()
    content = json.dumps(body).encode()
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """Send a request and return the body of its answer."""
    async with asyncio.timeout(_TIMEOUT_S):
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        return await reader.readexactly(int(length))


def _verify_body(prompt: str, response: str) -> dict[str, Any]:
    said = [{"type": "output_text", "text": response}]
    return {
        "responses_create_params": {"input": [{"role": "user", "content": prompt}]},
        "response": {"output": [{"type": "message", "role": "assistant", "content": said}]},
    }


def _picture() -> bytes:
    """Return a picture that no other call has, of the size of a photograph."""
    content = io.BytesIO()
    pixels = np.random.default_rng().integers(0, 256, _PICTURE_SHAPE, dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()


async def measure(address: str, options: argparse.Namespace) -> dict[str, Any]:
    sides = Sides(address, options.groups, options.size)
    calls = {"one_call": sides.one_call, "single_calls": sides.single_calls, "bare_calls": sides.bare_calls}
    for call in calls.values():
        await call()
    seconds: dict[str, list[float]] = {side: [] for side in calls}
    for number in range(options.rounds):
        for side in list(calls)[:: 1 if number % 2 else -1]:
            seconds[side].append(await calls[side]())
    new, held = list[float](), list[float]()
    for _ in range(options.picture_rounds):
        first, again = await sides.pictures()
        new.append(first)
        held.append(again)
    medians = {f"{side}_s": statistics.median(found) for side, found in seconds.items()}
    return medians | {
        "single_by_one": _ratios(seconds["single_calls"], seconds["one_call"]),
        "bare_by_one": _ratios(seconds["bare_calls"], seconds["one_call"]),
        "new_pictures_s": statistics.median(new),
        "held_pictures_s": statistics.median(held),
        "held_by_new": _ratios(held, new),
    }


def _ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the quartiles of the ratios of the same round."""
    return statistics.quantiles([a / b for a, b in zip(numerators, denominators, strict=True)], n=4)


def measure_trl(address: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure steps of TRL with both rewards."""
    state = options.state.resolve()
    python = trl_baseline.environment(state)
    secret = state / "trainer.token"
    secret.touch(mode=0o600)
    secret.write_text(_TRAINER)
    command = [python, Path(__file__).parent / "trl_rewards.py", "--model", build_tiny_vlm(state / "tiny-vlm")]
    values = {"state": state, "steps": options.trl_steps, "size": options.size, "response": options.response}
    for name, value in (values | {"latency-s": options.client_s}).items():
        command += [f"--{name}", value]
    variables = {"MOR_ROUTER_URL": address, "MOR_TOKEN_FILE": str(secret), "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        check=True,
        timeout=3600,
    )
    seconds: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return {
        "trl": trl_baseline.TRL,
        "trl_local_s": statistics.median(seconds["local"]),
        "trl_mixture_s": statistics.median(seconds["mixture"]),
        "trl_mixture_by_local": _ratios(seconds["mixture"], seconds["local"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--size", type=int, default=8, help="responses of a group")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--client-s", type=float, default=0.2, help="seconds that a client takes for a request")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--picture-rounds", type=int, default=5)
    parser.add_argument("--trl-steps", type=int, default=40, help="measured steps by TRL, a multiple of 4")
    parser.add_argument("--response", type=int, default=16, help="tokens of a response in TRL's steps")
    parser.add_argument("--state", type=Path, default=Path(".mor/bench/trl"), help="environment and model of TRL")
    options = parser.parse_args()
    end_children_on_sigterm()
    with router(options.client_s, options.clients) as address:
        figures = asyncio.run(measure(address, options)) | measure_trl(address, options)
    shape = {name: value for name, value in vars(options).items() if name != "state"}
    print(record("integrations", shape | {"picture_bytes": len(_picture())} | figures))


if __name__ == "__main__":
    main()
