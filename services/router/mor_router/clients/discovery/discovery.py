"""Reconciliation of the registry with the cluster: labelled Services are enrolled, updated, and removed when gone.

Each list of a namespace is compared as a whole, so that no event has to be seen: after a restart, a change of the
leader, or an outage, the next list corrects everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from mor_core.clients import Change, Enrolment, Rotation
from mor_core.errors import Invalid, MorError, NotFound
from mor_core.failures import describe_failure
from mor_core.tasks import stop
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_router.clients.discovery.cluster import API_ERRORS, ClusterApi, LabelledService, connect_cluster, parse_service
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.enrolment import Enroller
from mor_router.clients.registry import ClientRecord, ClientRegistry
from mor_router.clients.secret_store import SecretStore
from mor_router.config import RouterSettings
from mor_router.leadership import Leadership

_BY = "discovery"
_OUTSIDE = "its endpoints are outside of MOR_KUBERNETES_NETWORKS"
_BACK = "its endpoints were outside of MOR_KUBERNETES_NETWORKS; a fit, or 'mor client resume --active', gives it weight"

log = structlog.get_logger(__name__)


class Discovery:
    """Watch over the allowed namespaces, by the replica that leads."""

    def __init__(
        self,
        *,
        settings: RouterSettings,
        redis: Redis,
        registry: ClientRegistry,
        enroller: Enroller,
        egress: EgressPolicy,
        secret_store: SecretStore,
    ) -> None:
        self._settings = settings
        self._leadership = Leadership(redis, "discovery")
        self._registry = registry
        self._enroller = enroller
        self._egress = egress
        self._secret_store = secret_store

    async def run(self) -> None:
        """Reconcile the registry while this replica leads, until cancelled."""
        await self._leadership.while_leading(self._lead)

    async def _lead(self) -> None:
        settings = self._settings
        async with connect_cluster(
            settings.kubernetes_config, settings.kubernetes_selector, settings.kubernetes_resync_s
        ) as cluster:
            await self._remove_disallowed()
            tasks = [
                asyncio.create_task(self._watch(cluster, namespace), name=f"discovery in {namespace}")
                for namespace in settings.kubernetes_namespaces
            ]
            try:
                ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await stop(tasks)
            for task in ended:
                task.result()  # a watch ends by an error only

    async def _remove_disallowed(self) -> None:
        """Remove the clients of namespaces that are no longer allowed."""
        for record in await self._registry.all():
            if record.source == "kubernetes" and _namespace(record) not in self._settings.kubernetes_namespaces:
                await self._enroller.revoke(record.name, _BY)

    async def _watch(self, cluster: ClusterApi, namespace: str) -> None:
        async for services in cluster.services(namespace):
            try:
                await self._reconcile(cluster, namespace, services)
            except RedisError as error:
                log.warning(
                    "the registry cannot be read; the next list is compared instead", error=describe_failure(error)
                )

    async def _reconcile(self, cluster: ClusterApi, namespace: str, services: Sequence[Any]) -> None:
        gone = {
            record.name
            for record in await self._registry.all()
            if record.source == "kubernetes" and _namespace(record) == namespace
        }
        for service in services:
            name = f"{service.metadata.name}.{namespace}"
            gone.discard(name)
            try:
                await self._enrol_or_update(cluster, parse_service(service))
            except (MorError, ValidationError, *API_ERRORS) as error:
                log.warning(
                    "a Service cannot be enrolled; tried again later", client=name, reason=describe_failure(error)
                )
        for name in gone:
            log.info("a Service is gone", client=name)
            await self._enroller.revoke(name, _BY)

    async def _enrol_or_update(self, cluster: ClusterApi, service: LabelledService) -> None:
        try:
            record: ClientRecord | None = await self._registry.get(service.name)
        except NotFound:
            record = None
        if record is not None and record.source != "kubernetes":
            raise Invalid(f"a client {service.name!r} was enrolled by API; remove it, or the label of the Service")
        addresses = await cluster.addresses(service)
        try:
            for address in addresses:
                self._egress.check(service.host, address, "kubernetes")
        except Invalid:
            if record is not None and record.state not in ("paused", "quarantined"):
                await self._enroller.change(service.name, Change(state="paused", reason=_OUTSIDE), _BY)
            raise
        if not addresses:
            log.info("a Service has no ready endpoint", client=service.name)
            return
        token = await cluster.token(service)
        if record is None:
            enrolment = Enrolment(name=service.name, url=service.url, domains=service.domains, token=token)
            await self._enroller.enrol(enrolment, _BY, source="kubernetes")
            log.info("a Service was enrolled", client=service.name, url=service.url)
        else:
            await self._update(record, service, token)

    async def _update(self, record: ClientRecord, service: LabelledService, token: SecretStr) -> None:
        if self._known_token(record) != token:
            await self._enroller.rotate(record.name, Rotation(token=token), _BY)
        if record.url != service.url:
            await self._enroller.change(record.name, Change(url=service.url), _BY, source="kubernetes")
        if record.state == "paused" and record.reason == _OUTSIDE:
            await self._enroller.change(record.name, Change(state="probation", reason=_BACK), _BY)

    def _known_token(self, record: ClientRecord) -> SecretStr | None:
        """Return the stored token; ``None`` where it cannot be decrypted, and is replaced by the cluster's."""
        try:
            return self._secret_store.decrypt(record.secret, record.owner)
        except Invalid:
            return None


def _namespace(record: ClientRecord) -> str:
    return record.name.partition(".")[2]
