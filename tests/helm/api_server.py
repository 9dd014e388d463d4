"""A Kubernetes API server for tests: the kinds that the charts have, strict schemas, watches.

helm, kubectl and the Python clients work on it. Like a real one it refuses changes of immutable fields and duplicate
entries of lists, knows conflicts of server-side apply, makes claims and pods of workloads, and collects what has lost
its owner. It records the requests, and a test can make it unavailable or compact its history, so that watches are too
old. Jobs are complete as soon as they are made, because hooks wait for that.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jsonpatch
import kubernetes_validate
import yaml
from aiohttp import web

from tests.helm import api_discovery, protobuf
from tests.helm.api_discovery import GROUPS, RESOURCES
from tests.helm.app_thread import AppThread
from tests.helm.controllers import Controllers, Key
from tests.helm.field_owners import FieldOwners
from tests.helm.list_keys import duplicates
from tests.helm.object_selection import selected
from tests.helm.patches import merge, strategic
from tests.helm.update_rules import complaints


class Request(NamedTuple):
    """Attributes of a request by which RBAC decides."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str | None


class Refused(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        self.status |= {"message": message, "reason": reason, "code": code}
        self.code = code


class ApiServer:
    """The server on its own thread; its methods may be called from any other."""

    def __init__(self, version: str = "1.34") -> None:
        self.version = version
        self.objects: dict[Key, dict[str, Any]] = {}
        self.requests: list[Request] = []
        self.unavailable = False
        self.expandable: set[str | None] = set()
        """Storage classes whose volumes may grow."""
        self.controllers = Controllers(self.objects, self._store, self._remove)
        self._owners: dict[Key, FieldOwners] = defaultdict(FieldOwners)
        self._revision = 1
        self._oldest = 0
        self._events: list[tuple[int, str, Key, dict[str, Any]]] = []
        self._changed = asyncio.Event()
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self._serving = AppThread(app)
        self.url = f"http://{self._serving.address}"
        for name in ("default", "kube-system"):
            self.put("v1", "namespaces", {"metadata": {"name": name}})

    def stop(self) -> None:
        self._serving.stop()

    def kubeconfig(self) -> str:
        cluster = {"name": "test", "cluster": {"server": self.url}}
        context = {"name": "test", "context": {"cluster": "test", "user": "test"}}
        return json.dumps(
            {"apiVersion": "v1", "kind": "Config", "current-context": "test", "clusters": [cluster]}
            | {"contexts": [context], "users": [{"name": "test", "user": {}}]}
        )

    def put(self, group_version: str, resource: str, document: dict[str, Any]) -> None:
        """Make or replace an object."""
        document = {"apiVersion": group_version, "kind": RESOURCES[group_version, resource]["kind"], **document}
        namespace = document["metadata"].get("namespace", "")
        key = Key(group_version, resource, namespace, document["metadata"]["name"])
        self._call(lambda: self._store(key, copy.deepcopy(document)))

    def delete(self, group_version: str, resource: str, namespace: str, name: str) -> None:
        self._call(lambda: self._remove(Key(group_version, resource, namespace, name)))

    def compact(self) -> None:
        """Discard the history, so that every watch is too old."""

        def discard() -> None:
            self._revision += 1
            self._oldest = self._revision
            self._wake()

        self._call(discard)

    def set_unavailable(self, unavailable: bool) -> None:
        """Answer every request with 503 and end all watches, or end that state."""

        def switch() -> None:
            self.unavailable = unavailable
            self._wake()

        self._call(switch)

    def of(self, kind: str, namespace: str) -> dict[str, dict[str, Any]]:
        """Objects of a kind by name."""
        return {
            key.name: document
            for key, document in self.objects.items()
            if document["kind"] == kind and key.namespace == namespace
        }

    def created(self, kind: str) -> list[str]:
        """Names of all objects of a kind that were made, those that are gone included."""
        return [key.name for _, event, key, found in self._events if event == "ADDED" and found["kind"] == kind]

    def _call(self, work: Any) -> None:
        async def run() -> None:
            work()

        asyncio.run_coroutine_threadsafe(run(), self._serving.loop).result(timeout=20)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _note(self, event: str, key: Key, document: dict[str, Any]) -> None:
        self._events.append((self._revision, event, key, copy.deepcopy(document)))
        self._wake()

    def _store(self, key: Key, document: dict[str, Any]) -> dict[str, Any]:
        self._revision += 1
        known = self.objects.get(key)
        metadata = document["metadata"]
        metadata["resourceVersion"] = str(self._revision)
        if known is None:
            created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": created, "generation": 1}
        else:
            metadata |= {name: known["metadata"][name] for name in ("uid", "creationTimestamp", "generation")}
        if key.namespace:
            metadata["namespace"] = key.namespace
        for name, value in document.pop("stringData", {}).items():
            document.setdefault("data", {})[name] = base64.b64encode(value.encode()).decode()
        if key.resource == "jobs":
            document["status"] = {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}
        if known is not None and known.get("spec") != document.get("spec"):
            metadata["generation"] += 1
        self.objects[key] = document
        self._note("ADDED" if known is None else "MODIFIED", key, document)
        self.controllers.follow(key, document)
        return document

    def _remove(self, key: Key) -> None:
        self._revision += 1
        document = self.objects.pop(key)
        document["metadata"]["resourceVersion"] = str(self._revision)
        self._owners.pop(key, None)
        self._note("DELETED", key, document)
        self.controllers.collect(document)
        if key.resource == "namespaces":
            while left := [other for other in self.objects if other.namespace == key.name]:
                self._remove(left[0])

    def _check(self, document: dict[str, Any]) -> None:
        """
        Raises:
            Refused: the document is not of the schema.
        """
        stripped = {name: part for name, part in document.items() if name != "status"}
        try:
            kubernetes_validate.validate(copy.deepcopy(stripped), self.version, strict=True)
        except kubernetes_validate.ValidationError as error:
            named = f"{document['kind']} {document['metadata'].get('name')!r}"
            raise Refused(422, "Invalid", f"{named} is invalid: {error.message}") from error
        except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.InvalidSchemaError):
            pass
        self._refuse(document, duplicates(document))

    def _check_update(self, key: Key, document: dict[str, Any]) -> None:
        known = self.objects.get(key)
        if known is not None:
            storage_class = known.get("spec", {}).get("storageClassName")
            self._refuse(document, complaints(known, document, expandable=storage_class in self.expandable))

    def _refuse(self, document: dict[str, Any], found: list[str]) -> None:
        if found:
            named = f"{document['kind']} {document['metadata'].get('name')!r}"
            raise Refused(422, "Invalid", f"{named} is invalid: {'; '.join(found)}")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.unavailable:
            return web.json_response({"message": "down"}, status=503)
        try:
            return await self._route(request)
        except Refused as refusal:
            return web.json_response(refusal.status, status=refusal.code)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        match [part for part in request.path.split("/") if part]:
            case ["version"]:
                major, minor = self.version.split(".")
                return web.json_response({"major": major, "minor": minor, "gitVersion": f"v{self.version}.0"})
            case ["api"]:
                return web.json_response({"kind": "APIVersions", "versions": ["v1"]})
            case ["apis"]:
                return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": api_discovery.groups()})
            case ["openapi", "v3", *rest]:
                return web.json_response(
                    api_discovery.openapi("/".join(rest[1:])) if rest else api_discovery.openapi_index()
                )
            case ["api", version, *rest]:
                return await self._resource(request, version, rest)
            case ["apis", group, version, *rest]:
                return await self._resource(request, f"{group}/{version}", rest)
            case _:
                raise Refused(404, "NotFound", f"no {request.path}")

    async def _resource(self, request: web.Request, group: str, rest: list[str]) -> web.StreamResponse:
        if group not in GROUPS:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if not rest:
            return web.json_response(GROUPS[group])
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        resource, name = rest[0], rest[1] if len(rest) > 1 else ""
        if (group, resource) not in RESOURCES:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        key = Key(group, resource, namespace, name)
        watching = request.query.get("watch") in ("1", "true")
        verb = {"GET": "get" if name else "watch" if watching else "list", "POST": "create", "PUT": "update"}
        verb |= {"PATCH": "patch", "DELETE": "delete"}
        api_group = group.rpartition("/")[0]
        self.requests.append(Request(verb[request.method], api_group, resource, namespace, name or None))
        if request.method == "GET":
            if name:
                return web.json_response(self._known(key))
            return await self._watch(request, key) if watching else web.json_response(self._list(request.query, key))
        if request.method == "DELETE":
            self._known(key)
            if not _dry(request):
                await self._delete(request, key)
            return web.json_response({"kind": "Status", "apiVersion": "v1", "status": "Success"})
        return await self._write(request, key)

    def _known(self, key: Key) -> dict[str, Any]:
        if key not in self.objects:
            raise Refused(404, "NotFound", f'{key.resource} "{key.name}" not found')
        return self.objects[key]

    def _list(self, query: Mapping[str, str], wanted: Key) -> dict[str, Any]:
        kind = RESOURCES[wanted.group_version, wanted.resource]["kind"]
        found = [document for key, document in sorted(self.objects.items()) if selected(key, document, wanted, query)]
        metadata = {"resourceVersion": str(self._revision)}
        return {"kind": f"{kind}List", "apiVersion": wanted.group_version, "metadata": metadata, "items": found}

    async def _watch(self, request: web.Request, wanted: Key) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        with contextlib.suppress(ConnectionResetError):
            await response.prepare(request)
            await self._send_events(request, wanted, response)
        return response

    async def _send_events(self, request: web.Request, wanted: Key, response: web.StreamResponse) -> None:
        since = int(request.query.get("resourceVersion") or 0)
        end = time.monotonic() + float(request.query.get("timeoutSeconds", 30))

        async def send(event: str, document: dict[str, Any]) -> None:
            await response.write(json.dumps({"type": event, "object": document}).encode() + b"\n")

        if since == 0:
            for document in self._list(request.query, wanted)["items"]:
                await send("ADDED", document)
            since = self._revision
            if request.query.get("sendInitialEvents") == "true":
                kind = RESOURCES[wanted.group_version, wanted.resource]["kind"]
                end_of_list = {"resourceVersion": str(since), "annotations": {"k8s.io/initial-events-end": "true"}}
                await send("BOOKMARK", {"kind": kind, "apiVersion": wanted.group_version, "metadata": end_of_list})
        while not self.unavailable and time.monotonic() < end:
            if since < self._oldest:
                await send("ERROR", Refused(410, "Expired", f"too old resource version: {since}").status)
                break
            for revision, event, key, document in self._events:
                if revision > since and selected(key, document, wanted, request.query):
                    await send(event, document)
            since = max(since, self._revision)
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.01, end - time.monotonic()))
            except TimeoutError:
                break

    async def _delete(self, request: web.Request, key: Key) -> None:
        """Dependents go too, unless the caller orphans them, as ``kubectl delete --cascade=orphan`` does."""
        body = await request.read()
        options = protobuf.decode(body) if "protobuf" in request.content_type else yaml.safe_load(body or b"{}")
        policy = request.query.get("propagationPolicy") or options.get("propagationPolicy")
        if policy == "Orphan" or options.get("orphanDependents"):
            self.controllers.orphan(self.objects[key])
        self._remove(key)

    async def _write(self, request: web.Request, key: Key) -> web.StreamResponse:
        body = await request.read()
        document = protobuf.decode(body) if "protobuf" in request.content_type else yaml.safe_load(body)
        known = self.objects.get(key)
        manager = request.query.get("fieldManager") or request.headers.get("User-Agent", "test").partition("/")[0]
        if request.method == "PATCH" and "apply" not in request.content_type:
            known = self._known(key)
            written = _patched(known, document, request.content_type)
        else:
            if key.namespace and Key("v1", "namespaces", "", key.namespace) not in self.objects:
                raise Refused(404, "NotFound", f'namespaces "{key.namespace}" not found')
            kind = RESOURCES[key.group_version, key.resource]["kind"]
            written = {"apiVersion": key.group_version, "kind": kind, **document}
            if request.method == "POST":
                metadata = written["metadata"]
                metadata.setdefault("name", f"{metadata.get('generateName', '')}{uuid.uuid4().hex[:5]}")
                key = key._replace(name=metadata["name"])
                if key in self.objects:
                    raise Refused(409, "AlreadyExists", f'{key.resource} "{key.name}" already exists')
        applies = request.method == "PATCH" and "apply" in request.content_type
        self._check(written)
        version = known and known["metadata"]["resourceVersion"]
        if version and written["metadata"].get("resourceVersion") not in (None, version):
            raise Refused(409, "Conflict", f'{key.resource} "{key.name}": the object has been modified')
        owners = copy.deepcopy(self._owners.get(key, FieldOwners()))
        if written["metadata"].pop("managedFields", None) == [{}]:
            owners = FieldOwners()  # an empty entry makes all fields nobody's
        if applies:
            live = known or {"apiVersion": written["apiVersion"], "kind": written["kind"]}
            if request.query.get("force") != "true":
                self._refuse_conflicts(owners.conflicts(manager, live, written), key)
            written = owners.apply(manager, live, written)
        else:
            owners.update(manager, known, written)
        self._check_update(key, written)
        if _dry(request):
            return web.json_response(written)
        stored = self._store(key, written)
        self._owners[key] = owners
        return web.json_response(stored, status=201 if known is None else 200)

    def _refuse_conflicts(self, found: list[tuple[str, str]], key: Key) -> None:
        if found:
            listed = "; ".join(
                f'conflict with "{manager}" using {key.group_version}: {path}' for manager, path in found
            )
            plural = "s" if len(found) > 1 else ""
            raise Refused(409, "Conflict", f"Apply failed with {len(found)} conflict{plural}: {listed}")


def _patched(known: dict[str, Any], patch: Any, content_type: str) -> dict[str, Any]:
    if "json-patch" in content_type:
        changed: dict[str, Any] = jsonpatch.apply_patch(known, patch)
    elif "strategic" in content_type:
        changed = strategic(known, patch, known["kind"])
    else:
        changed = merge(known, patch)
    return changed


def _dry(request: web.Request) -> bool:
    return "All" in request.query.getall("dryRun", [])
