"""What Kubernetes says of the Services with a label: in one namespace, now and after each change."""

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
from pydantic import SecretStr

OUTAGE = (ApiException, aiohttp.ClientError, TimeoutError, OSError)
"""What a call of the API raises when it is out of reach, or refuses."""

_GONE = 410
_CALL_TIMEOUT_S = 10.0
_SETTLE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_ANNOTATION = "mor.dev/"
_TOKEN_KEY = "token"  # noqa: S105

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Offer:
    """A Service that wants to be a client."""

    namespace: str
    service: str
    port: int
    scheme: str
    token_secret: str
    """Name of the Secret, in the same namespace, whose key ``token`` the reward service wants to see."""
    domains: str

    @property
    def name(self) -> str:
        """Name as a client. Kubernetes keeps it apart from all others in the cluster."""
        return f"{self.service}.{self.namespace}"

    @property
    def host(self) -> str:
        return f"{self.service}.{self.namespace}.svc"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def read_offer(service: Any) -> Offer:
    """
    Raises:
        Invalid: the Service cannot be a client; with the cure.
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
    return Offer(
        namespace=namespace,
        service=name,
        port=named[0] if named else ports[0].port,
        scheme=scheme,
        token_secret=annotations.get(f"{_ANNOTATION}token-secret", name),
        domains=annotations.get(f"{_ANNOTATION}domains", ""),
    )


class Cluster:
    """The Kubernetes API, as far as the router's Role reaches."""

    def __init__(self, api: client.ApiClient, selector: str, resync_s: float) -> None:
        self._core = client.CoreV1Api(api)
        self._slices = client.DiscoveryV1Api(api)
        self._selector = selector
        self._resync_s = resync_s

    async def services(self, namespace: str) -> AsyncIterator[list[Any]]:
        """The labelled Services: now, after each change, and about every ``resync_s`` seconds, without end.

        While the API is out of reach, or forgot where the watch was (410), nothing is yielded: what is not known to be
        gone stays.
        """
        failures = 0
        while True:
            try:
                listing = await self._core.list_namespaced_service(
                    namespace, label_selector=self._selector, _request_timeout=_CALL_TIMEOUT_S
                )
                failures = 0
                yield listing.items
                await asyncio.sleep(random.uniform(0.5, 1) * _SETTLE_S)
                await self._change(namespace, listing.metadata.resource_version)
            except OUTAGE as error:
                failures += 1
                pause = min(_LONGEST_PAUSE_S, 2.0 ** min(failures, 8) / 2) * random.uniform(0.5, 1)
                log.warning(
                    "Kubernetes is out of reach", namespace=namespace, error=_brief(error), again_s=round(pause, 1)
                )
                await asyncio.sleep(pause)

    async def _change(self, namespace: str, since: str) -> None:
        """Returns when a Service changed after version ``since``, or after ``resync_s``."""
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
            log.info("the watch was too old and begins again", namespace=namespace)
        except ValueError:  # an event longer than a line may be: read the list instead
            return
        finally:
            watcher.stop()
            await watcher.close()

    async def addresses(self, offer: Offer) -> list[str]:
        """Addresses of the Service's endpoints that are ready.

        Raises:
            Invalid: an endpoint is a name outside of the cluster.
        """
        selector = f"kubernetes.io/service-name={offer.service}"
        slices = await self._slices.list_namespaced_endpoint_slice(
            offer.namespace, label_selector=selector, _request_timeout=_CALL_TIMEOUT_S
        )
        if any(found.address_type == "FQDN" for found in slices.items):
            raise Invalid(f"{offer.name}: its endpoints are names outside of the cluster; enrol it by API instead")
        ready = [
            endpoint
            for found in slices.items
            for endpoint in found.endpoints or []
            if endpoint.conditions is None or endpoint.conditions.ready is not False
        ]
        return sorted({address for endpoint in ready for address in endpoint.addresses})

    async def token(self, offer: Offer) -> SecretStr:
        """
        Raises:
            Invalid: the Secret may not be read, is not there, or has no usable token; with the cure.
        """
        where = f"Secret {offer.namespace}/{offer.token_secret}"
        try:
            secret = await self._core.read_namespaced_secret(
                offer.token_secret, offer.namespace, _request_timeout=_CALL_TIMEOUT_S
            )
        except ApiException as error:
            if error.status not in (403, 404):
                raise
            cure = "name it in router.discovery.namespaces[].secrets" if error.status == 403 else "create it"
            raise Invalid(f"{where} of client {offer.name}: {error.reason}; {cure}") from error
        try:
            return SecretStr(base64.b64decode((secret.data or {})[_TOKEN_KEY], validate=True).decode().strip())
        except (KeyError, binascii.Error, UnicodeDecodeError) as error:
            raise Invalid(f"{where} of client {offer.name} has no text under the key {_TOKEN_KEY!r}") from error


def _brief(error: BaseException) -> str:
    return f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error) or type(error).__name__


def load_client() -> None:
    """Import what is used of the Kubernetes client, which takes seconds: its package imports each part when asked."""
    for part in ("ApiClient", "Configuration", "CoreV1Api", "DiscoveryV1Api", "V1ServiceList", "V1EndpointSliceList"):
        getattr(client, part)


@asynccontextmanager
async def connected(kubeconfig: Path | None, selector: str, resync_s: float) -> AsyncIterator[Cluster]:
    """The cluster that the router runs in, or that of ``kubeconfig``.

    Raises:
        ConfigException: neither a service account's token nor a usable file is there.
    """
    await asyncio.to_thread(load_client)
    settings = client.Configuration()
    if kubeconfig is None:
        config.load_incluster_config(client_configuration=settings)
    else:
        await config.load_kube_config(str(kubeconfig), client_configuration=settings, persist_config=False)
    async with client.ApiClient(settings) as api:
        yield Cluster(api, selector, resync_s)
