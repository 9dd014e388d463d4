"""HTTP server of a trainer's weight files, with the faults of a network and of a bad trainer."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from mor_core.tensor_headers import read_header
from mor_core.weight_checksums import file_checksum
from mor_core.weight_delta import DeltaFile
from mor_core.wire import Algorithm, TensorInfo, WeightsDelta, WeightsFile, WeightsManifest, WeightsRef
from safetensors.torch import save_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from torch import Tensor

from tests.ports import free_port

_FULL = "model.safetensors"
_PORT = free_port()
URL = f"http://127.0.0.1:{_PORT}"
"""Address of every publisher, as ``control_url`` in the services' settings: a test has one at a time."""

Fault = Callable[[Request], Response | None]


class Publisher:
    """Server of ``/v1/runs/{run}/weights/{version}[/{file}]``. A path's fault may respond instead, or return None."""

    def __init__(self, folder: Path, base: Path, algorithm: Algorithm = "blake3") -> None:
        self._folder = folder
        self._base = base
        self._algorithm = algorithm
        self.manifests: dict[str, WeightsManifest] = {}
        self.faults: dict[str, Fault] = {}
        self.requests: list[tuple[str, str | None]] = []
        routes = [
            Route("/v1/runs/{run}/weights/{version}", self._manifest),
            Route("/v1/runs/{run}/weights/{version}/{file}", self._file),
        ]
        config = uvicorn.Config(Starlette(routes=routes), port=_PORT, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def close(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(timeout=10)

    def publish(
        self, run: str, version: int, tensors: dict[str, Tensor], *, delta_from: int | None = None, **changes: Any
    ) -> WeightsRef:
        """Publish full weights: the given tensors replace the base's. ``delta_from``: base of its delta."""
        folder = self._new(run, version)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _FULL)
        ref = self._announce(run, version, folder, "full", **changes)
        if delta_from is not None:
            self._add_delta(run, version, delta_from)
        return ref

    def _add_delta(self, run: str, version: int, base: int) -> None:
        path = self._folder / run / str(version) / "model.delta"
        content = memoryview(path.with_name(_FULL).read_bytes())
        entries, start = read_header(path.with_name(_FULL))
        writer = DeltaFile(path, self._folder / run / str(base) / _FULL)
        for first, last in sorted(entry["data_offsets"] for entry in entries.values()):
            writer.add(content[start + first : start + last])
        assert writer.close()
        found = file_checksum(path, "blake3")
        delta = WeightsDelta(name=path.name, bytes=found.bytes, blake3=found.hexdigest(), base=base)
        manifest = f"/v1/runs/{run}/weights/{version}"
        self.manifests[manifest] = self.manifests[manifest].model_copy(update={"delta": delta})

    def publish_adapter(self, run: str, version: int, adapter: Path) -> WeightsRef:
        """Publish a PEFT adapter folder."""
        folder = self._new(run, version)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(adapter / name, folder / name)
        return self._announce(run, version, folder, "lora")

    def _new(self, run: str, version: int) -> Path:
        folder = self._folder / run / str(version)
        folder.mkdir(parents=True)
        return folder

    def _announce(self, run: str, version: int, folder: Path, kind: str, **changes: Any) -> WeightsRef:
        files = sorted(folder.iterdir())
        hashed = {file: file_checksum(file, self._algorithm) for file in files}
        tensors = {
            name: TensorInfo(dtype=one.dtype, shape=one.shape, **{self._algorithm: one.checksum})
            for file in hashed.values()
            for name, one in file.tensors.items()
        }
        listed = tuple(
            WeightsFile(name=file.name, bytes=found.bytes, **{self._algorithm: found.hexdigest()})
            for file, found in hashed.items()
        )
        manifest = WeightsManifest(
            run=run, version=version, base=str(self._base), kind=kind, files=listed, tensors=tensors
        )
        path = f"/v1/runs/{run}/weights/{version}"
        self.manifests[path] = manifest.model_copy(update=changes)
        return WeightsRef(version=version)

    def _fault(self, request: Request) -> Response | None:
        self.requests.append((request.url.path, request.headers.get("range")))
        fault = self.faults.get(request.url.path)
        return fault(request) if fault is not None else None

    async def _manifest(self, request: Request) -> Response:
        fault = self._fault(request)
        if fault is not None:
            return fault
        manifest = self.manifests.get(request.url.path)
        if manifest is None:
            return Response("no such version", 404)
        return Response(manifest.model_dump_json(), media_type="application/json")

    async def _file(self, request: Request) -> Response:
        fault = self._fault(request)
        if fault is not None:
            return fault
        path = request.path_params
        return FileResponse(self._folder / path["run"] / path["version"] / path["file"])


class Silence(Response):
    """Response that never comes."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(30)


class Halted(Response):
    """Response of which the second half comes when ``go_on`` is set."""

    def __init__(self, content: bytes, go_on: threading.Event) -> None:
        super().__init__(content)
        self._go_on = go_on

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", str(len(self.body)).encode())]
        half = len(self.body) // 2
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.body[:half], "more_body": True})
        await asyncio.to_thread(self._go_on.wait, 20)
        await send({"type": "http.response.body", "body": self.body[half:]})


class CutShort(Response):
    """Response that breaks the connection after half of the body."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.body[: len(self.body) // 2], "more_body": True})
        raise ConnectionResetError
