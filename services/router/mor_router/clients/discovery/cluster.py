"""Kubernetes API client: the labelled Services of a namespace, now and after each change, with endpoints and tokens."""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from kubernetes.aio import client, config, watch
from kubernetes.aio.client.exceptions import ApiException
from mor_core.errors import Invalid
from mor_core.failures import describe_failure
from pydantic import SecretStr

API_ERRORS = (ApiException, aiohttp.ClientError, TimeoutError, OSError)
"""Exceptions of a call to the API that cannot be reached, or that refuses."""

_GONE = 410
"""HTTP status of a watch whose resource version the API server has discarded."""
_CALL_TIMEOUT_S = 10.0
"""Seconds for one call to the API server, which normally answers within one."""
_DEBOUNCE_S = 1.0
"""Seconds between a list and the next watch, so that a burst of changes is read as one."""
_LONGEST_PAUSE_S = 30.0
"""Longest seconds between attempts while the API is unreachable: its return is noticed within them."""
_ANNOTATION = "mor.dev/"
_TOKEN_KEY = "token"  # noqa: S105

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LabelledService:
    """A Service that offers itself as a client by its label."""

    namespace: str
    service: str
    port: int
    scheme: str
    token_secret: str
    """Name of the Secret, in the same namespace, whose key ``token`` is the reward service's bearer token."""
    domains: str

    @property
    def name(self) -> str:
        """Name as a client, unique in the cluster."""
        return f"{self.service}.{self.namespace}"

    @property
    def host(self) -> str:
        return f"{self.service}.{self.namespace}.svc"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def parse_service(service: Any) -> LabelledService:
    """Parse a Service of the API.

    Raises:
        Invalid: the Service cannot be a client.
    """
    name, namespace = service.metadata.name, service.metadata.namespace
    annotations = service.metadata.annotations or {}
    scheme = annotations.get(f"{_ANNOTATION}scheme", "http")
    ports = service.spec.ports or []
    if service.spec.type == "ExternalName" or not ports:
        raise Invalid(f"Service {namespace}/{name} has no port in the cluster; ExternalName Services are not enrolled")
    if scheme not in ("http", "https"):
        raise Invalid(f"Service {namespace}/{name}: annotation {_ANNOTATION}scheme is {scheme!r}; write http or https")
    named = [port.port for port in ports if port.name == scheme]
    if not named and len(ports) > 1:
        raise Invalid(f"Service {namespace}/{name} has several ports; name the one of the reward service {scheme!r}")
    return LabelledService(
        namespace=namespace,
        service=name,
        port=named[0] if named else ports[0].port,
        scheme=scheme,
        token_secret=annotations.get(f"{_ANNOTATION}token-secret", name),
        domains=annotations.get(f"{_ANNOTATION}domains", ""),
    )


class ClusterApi:
    """Calls to the Kubernetes API that the router's Role grants."""

    def __init__(self, api: client.ApiClient, selector: str, resync_s: float) -> None:
        self._core = client.CoreV1Api(api)
        self._slices = client.DiscoveryV1Api(api)
        self._selector = selector
        self._resync_s = resync_s

    async def services(self, namespace: str) -> AsyncIterator[list[Any]]:
        """Yield the labelled Services: now, after each change, and about every ``resync_s`` seconds, without end.

        While the API is unreachable nothing is yielded, so that no Service counts as removed. A watch that is too
        old (410) is followed by a new list.
        """
        failures = 0
        while True:
            try:
                listing = await self._core.list_namespaced_service(
                    namespace, label_selector=self._selector, _request_timeout=_CALL_TIMEOUT_S
                )
                failures = 0
                yield listing.items
                await asyncio.sleep(random.uniform(0.5, 1) * _DEBOUNCE_S)
                await self._wait_for_change(namespace, listing.metadata.resource_version)
            except API_ERRORS as error:
                failures += 1
                pause = min(_LONGEST_PAUSE_S, 2.0 ** min(failures, 8) / 2) * random.uniform(0.5, 1)
                log.warning(
                    "Kubernetes cannot be reached", namespace=namespace, error=_brief(error), retry_s=round(pause, 1)
                )
                await asyncio.sleep(pause)

    async def _wait_for_change(self, namespace: str, since: str) -> None:
        """Wait until a Service changes after resource version ``since``, or for about ``resync_s`` seconds."""
        seconds = max(1, round(self._resync_s * random.uniform(0.8, 1.2)))
        watcher = watch.Watch()
        try:
            async for _ in watcher.stream(
                self._core.list_namespaced_service,
                namespace,
                label_selector=self._selector,
                resource_version=since,
                timeout_seconds=seconds,
                _request_timeout=seconds + _CALL_TIMEOUT_S,
            ):
                return
        except ApiException as error:
            if error.status != _GONE:
                raise
            log.info("the watch was too old and starts again", namespace=namespace)
        except ValueError:  # an event longer than the client's line limit; the next list contains the change
            return
        finally:
            watcher.stop()
            await watcher.close()

    async def addresses(self, service: LabelledService) -> list[str]:
        """Return the addresses of the Service's ready endpoints.

        Raises:
            Invalid: an endpoint is a name outside of the cluster.
        """
        selector = f"kubernetes.io/service-name={service.service}"
        slices = await self._slices.list_namespaced_endpoint_slice(
            service.namespace, label_selector=selector, _request_timeout=_CALL_TIMEOUT_S
        )
        if any(found.address_type == "FQDN" for found in slices.items):
            raise Invalid(f"{service.name}: its endpoints are names outside of the cluster; enrol it by API instead")
        ready = [
            endpoint
            for found in slices.items
            for endpoint in found.endpoints or []
            if endpoint.conditions is None or endpoint.conditions.ready is not False
        ]
        return sorted({address for endpoint in ready for address in endpoint.addresses})

    async def token(self, service: LabelledService) -> SecretStr:
        """Read the reward service's token from its Secret.

        Raises:
            Invalid: the Secret may not be read, does not exist, or has no usable token.
        """
        where = f"Secret {service.namespace}/{service.token_secret}"
        try:
            secret = await self._core.read_namespaced_secret(
                service.token_secret, service.namespace, _request_timeout=_CALL_TIMEOUT_S
            )
        except ApiException as error:
            if error.status not in (403, 404):
                raise
            remedy = "name it in router.discovery.namespaces[].secrets" if error.status == 403 else "create it"
            raise Invalid(f"{where} of client {service.name}: {error.reason}; {remedy}") from error
        try:
            return SecretStr(base64.b64decode((secret.data or {})[_TOKEN_KEY], validate=True).decode().strip())
        except (KeyError, binascii.Error, UnicodeDecodeError) as error:
            raise Invalid(
                f"{where} of client {service.name} has no text under the key {_TOKEN_KEY!r};"
                " put the reward service's token there"
            ) from error


def _brief(error: BaseException) -> str:
    return f"{error.status} {error.reason}" if isinstance(error, ApiException) else describe_failure(error)


def load_client() -> None:
    """Import the parts of the Kubernetes client that are used: it imports each at first use, which takes seconds."""
    for part in ("ApiClient", "Configuration", "CoreV1Api", "DiscoveryV1Api", "V1ServiceList", "V1EndpointSliceList"):
        getattr(client, part)


@asynccontextmanager
async def connect_cluster(kubeconfig: Path | None, selector: str, resync_s: float) -> AsyncIterator[ClusterApi]:
    """Connect to the cluster that the router runs in, or to that of ``kubeconfig``.

    Raises:
        ConfigException: there is neither a service account's token nor a usable file.
    """
    await asyncio.to_thread(load_client)
    settings = client.Configuration()
    if kubeconfig is None:
        config.load_incluster_config(client_configuration=settings)
    else:
        await config.load_kube_config(str(kubeconfig), client_configuration=settings, persist_config=False)
    async with client.ApiClient(settings) as api:
        yield ClusterApi(api, selector, resync_s)
