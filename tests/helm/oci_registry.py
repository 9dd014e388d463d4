"""An OCI registry for tests, as far as `helm push` and `helm pull` use it: uploads in one piece, manifests."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from aiohttp import web

from tests.helm.app_thread import AppThread


class OciRegistry:
    """Blobs and manifests in memory, on its own thread."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        app = web.Application(client_max_size=64 << 20)
        add: Any = app.router.add_route
        add("GET", "/v2/", self._ping)
        add("*", "/v2/{name:.+}/blobs/uploads/{upload:.*}", self._upload)
        add("*", "/v2/{name:.+}/blobs/{digest}", self._blob)
        add("*", "/v2/{name:.+}/manifests/{reference}", self._manifest)
        self._serving = AppThread(app)
        self.address = self._serving.address

    def stop(self) -> None:
        self._serving.stop()

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
