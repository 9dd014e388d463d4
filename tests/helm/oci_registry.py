"""An OCI registry for tests, as far as `helm push` and `helm pull` use it: uploads in one piece, manifests."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import uuid
from typing import Any

from aiohttp import web


class OciRegistry:
    """Blobs and manifests in memory, on its own thread."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(20), "the registry did not come up"

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=64 << 20)
        add: Any = app.router.add_route
        add("GET", "/v2/", self._ping)
        add("*", "/v2/{name:.+}/blobs/uploads/{upload:.*}", self._upload)
        add("*", "/v2/{name:.+}/blobs/{digest}", self._blob)
        add("*", "/v2/{name:.+}/manifests/{reference}", self._manifest)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.address = f"127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=20)

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _upload(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            return web.Response(status=202, headers={"Location": f"{request.path}{uuid.uuid4().hex}"})
        content = await request.read()
        digest = _digest(content)
        assert digest == request.query["digest"]
        self.blobs[digest] = content
        return web.Response(status=201, headers={"Location": f"/v2/{request.match_info['name']}/blobs/{digest}"})

    async def _blob(self, request: web.Request) -> web.Response:
        content = self.blobs.get(request.match_info["digest"])
        return web.Response(status=404) if content is None else web.Response(body=content)

    async def _manifest(self, request: web.Request) -> web.Response:
        place = (request.match_info["name"], request.match_info["reference"])
        if request.method == "PUT":
            content = await request.read()
            for reference in {place[1], _digest(content)}:
                self.manifests[place[0], reference] = (request.content_type, content)
            return web.Response(status=201, headers={"Docker-Content-Digest": _digest(content)})
        if place not in self.manifests:
            return web.Response(status=404)
        kind, content = self.manifests[place]
        headers = {"Docker-Content-Digest": _digest(content), "Content-Type": kind}
        return web.Response(body=content, headers=headers)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
