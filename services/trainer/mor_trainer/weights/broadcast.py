"""Broadcast of full weights to the engines through vLLM's weight-transfer API, ahead of the files.

The files are written all the same: an engine that missed the broadcast, or part of it, pulls them. ``nccl`` was not
tested on hardware, see ``WorkerSettings.transfer_engines``; its contract is tested over gloo.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import httpx
import torch
from mor_core.errors import Invalid, Unavailable
from mor_core.failures import quote_failure
from torch import Tensor

from mor_trainer.config import WorkerSettings

_CONNECT_S = 5.0
"""Seconds to connect to a rollout service; short, because the files are the fallback."""


class WeightTransfer(Protocol):
    """Way other than files to bring a version to the engines."""

    def send(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Send a version; return once every engine has been seen to compute with it.

        ``tensors`` must not change meanwhile.

        Raises:
            Exception: an engine was not seen to; it must pull the files.
        """

    def close(self) -> None:
        """Leave the group of the engines, and close the connections to them."""


class WeightBroadcast:
    """Sender of weights in one group with all workers of all engines.

    The group is formed again whenever an engine is not in it.
    """

    def __init__(self, settings: WorkerSettings, run: str, base: str, attempt: int = 0) -> None:
        self._settings = settings
        self._engines = EngineClients(settings, run, base, attempt)
        self._source = _Source()
        self._sender: Any = None
        self._group = ""

    def send(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        self._source.tensors = tensors
        self._engines.describe(version, tensors)
        statuses = self._engines.statuses()
        if self._sender is None or any(status["group"] != self._group for status in statuses):
            self._leave()
            self._join([status["workers"] for status in statuses])
        try:
            self._sender.send_weights()
        except BaseException:
            self._leave()
            raise

    def _join(self, workers: list[int]) -> None:
        try:
            from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        except ImportError as error:
            raise Invalid(
                f"{quote_failure(error)}; MOR_TRANSFER_ENGINES needs the extra: install mor-trainer[nccl]"
            ) from error
        self._group = self._engines.group = secrets.token_hex(8)
        self._engines.workers = workers
        address = self._settings.transfer_address or _address_towards(self._settings.transfer_engines[0])
        info = NCCLTrainerInitInfo(
            rank=0, master_address=address, master_port=_free_port(), world_size=1 + sum(workers)
        )
        self._sender = WeightTransferTrainerFactory.trainer_init(info, client=self._engines, source=self._source)

    def close(self) -> None:
        self._leave()
        self._engines.close()

    def _leave(self) -> None:
        """Leave the group; the next version forms a new one."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.shutdown()


class EngineClients:
    """Client of all rollout services at once, with the methods of vLLM's ``VLLMWeightSyncClient``."""

    def __init__(self, settings: WorkerSettings, run: str, base: str, attempt: int) -> None:
        self._run, self._attempt, self._base = run, attempt, base
        self._version = -1
        self._tensors: Mapping[str, Tensor] = {}
        self.group = ""
        self.workers: list[int] = []
        """Ranks that each service takes in the group, in the order of the services."""
        token = settings.service_token.get_secret_value()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(settings.transfer_timeout_s, connect=_CONNECT_S)
        self._clients = [
            httpx.Client(
                base_url=address, headers=headers, timeout=timeout, verify=settings.control_tls(), trust_env=False
            )
            for address in settings.transfer_engines
        ]

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def describe(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Set the version that is sent next."""
        self._version, self._tensors = version, tensors

    def statuses(self) -> list[dict[str, Any]]:
        """Request the number of workers and the group of each service."""
        return self._each(lambda number, client: client.get("/v1/transfer"))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        first = [init_info["rank_offset"] + sum(self.workers[:number]) for number in range(len(self._clients))]

        def join(number: int, client: httpx.Client) -> httpx.Response:
            info = {**init_info, "rank_offset": first[number]}
            return client.post("/v1/transfer/enter", json={"group": self.group, "init_info": info})

        self._each(join)

    def start_weight_update(self) -> None:
        body = {"run": self._run, "run_attempt": self._attempt, "base": self._base}
        self._each(lambda _, client: client.post("/v1/transfer/begin", json=body))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._each(lambda _, client: client.post("/v1/transfer/receive", json={"update_info": update_info}))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        sums = {name: _sha256(tensor) for name, tensor in self._tensors.items()}
        body = {"run": self._run, "version": self._version, "tensors": sums}
        self._each(lambda _, client: client.post("/v1/transfer/end", json=body))

    def _each(self, request: Callable[[int, httpx.Client], httpx.Response]) -> list[Any]:
        """Call all services at once, because each may wait for the others."""
        with ThreadPoolExecutor(len(self._clients)) as pool:
            answers = list(pool.map(request, range(len(self._clients)), self._clients))
        for answer in answers:
            if not answer.is_success:
                raise Unavailable(f"{answer.request.url} answered {answer.status_code}: {answer.text[:500]}")
        return [answer.json() for answer in answers]


class _Source:
    """Tensors of the version that is sent, as vLLM's ``WeightSource``."""

    tensors: Mapping[str, Tensor]

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer import ParamMeta

        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter((name, tensor.detach()) for name, tensor in self.tensors.items())


def _sha256(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(content.data).hexdigest()


def _address_towards(engine: str) -> str:
    """Return the address from which this machine reaches an engine.

    Raises:
        OSError: it does not.
    """
    url = httpx.URL(engine)
    port = url.port or {"https": 443}.get(url.scheme, 80)
    with socket.create_connection((url.host, port), timeout=_CONNECT_S) as connection:
        return str(connection.getsockname()[0])


def _free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        return int(listener.getsockname()[1])
