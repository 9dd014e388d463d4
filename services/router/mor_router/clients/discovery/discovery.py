"""Makes the registry agree with the cluster: who offers is enrolled, who is gone is removed, what changed follows.

The list of a namespace is compared as a whole, so that nothing depends on having seen every event: after a restart, a
change of the leader, or an outage, the next list puts everything right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from mor_core.clients import Change, Enrolment, Rotation
from mor_core.errors import Invalid, MorError, NotFound
from mor_core.tasks import stop
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_router.clients.discovery.cluster import OUTAGE, Cluster, Offer, connected, read_offer
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.enrolment import Enroller
from mor_router.clients.registry import ClientRecord, Registry
from mor_router.clients.secret_store import Vault
from mor_router.config import RouterSettings
from mor_router.leadership import Leadership

_BY = "discovery"
_OUTSIDE = "its endpoints are outside of MOR_KUBERNETES_NETWORKS"

log = structlog.get_logger(__name__)


class Discovery:
    """The elected replica's watch over the allowed namespaces."""

    def __init__(
        self,
        *,
        settings: RouterSettings,
        redis: Redis,
        registry: Registry,
        enroller: Enroller,
        policy: EgressPolicy,
        vault: Vault,
    ) -> None:
        self._settings = settings
        self._leadership = Leadership(redis, "discovery")
        self._registry = registry
        self._enroller = enroller
        self._policy = policy
        self._vault = vault

    async def run(self) -> None:
        """Keep the registry in step while this replica leads, until cancelled."""
        await self._leadership.while_leading(self._lead)

    async def _lead(self) -> None:
        settings = self._settings
        async with connected(
            settings.kubernetes_config, settings.kubernetes_selector, settings.kubernetes_resync_s
        ) as cluster:
            await self._leave_namespaces()
            tasks = [
                asyncio.create_task(self._follow(cluster, namespace), name=f"discovery in {namespace}")
                for namespace in settings.kubernetes_namespaces
            ]
            try:
                ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await stop(tasks)
            for task in ended:
                task.result()  # a watch has no end but an error

    async def _leave_namespaces(self) -> None:
        """Remove the clients of namespaces that are not allowed any more."""
        for record in await self._registry.all():
            if record.source == "kubernetes" and _namespace(record) not in self._settings.kubernetes_namespaces:
                await self._enroller.revoke(record.name, _BY)

    async def _follow(self, cluster: Cluster, namespace: str) -> None:
        async for services in cluster.services(namespace):
            try:
                await self._agree(cluster, namespace, services)
            except RedisError as error:
                log.warning("the registry cannot be read; the next list is compared", error=str(error))

    async def _agree(self, cluster: Cluster, namespace: str, services: Sequence[Any]) -> None:
        gone = {
            record.name
            for record in await self._registry.all()
            if record.source == "kubernetes" and _namespace(record) == namespace
        }
        for service in services:
            name = f"{service.metadata.name}.{namespace}"
            gone.discard(name)
            try:
                await self._take(cluster, read_offer(service))
            except (MorError, ValidationError, *OUTAGE) as error:
                log.warning("a Service is not enrolled as it asks; tried again later", client=name, reason=str(error))
        for name in gone:
            log.info("a Service is gone", client=name)
            await self._enroller.revoke(name, _BY)

    async def _take(self, cluster: Cluster, offer: Offer) -> None:
        try:
            record: ClientRecord | None = await self._registry.get(offer.name)
        except NotFound:
            record = None
        if record is not None and record.source != "kubernetes":
            raise Invalid(f"a client {offer.name!r} was enrolled by API; remove it, or the label of the Service")
        addresses = await cluster.addresses(offer)
        try:
            for address in addresses:
                self._policy.judge(offer.host, address, "kubernetes")
        except Invalid:
            if record is not None and record.state not in ("paused", "quarantined"):
                await self._enroller.change(offer.name, Change(state="paused", reason=_OUTSIDE), _BY)
            raise
        if not addresses:
            log.info("a Service has no endpoint that is ready", client=offer.name)
            return
        token = await cluster.token(offer)
        if record is None:
            enrolment = Enrolment(name=offer.name, url=offer.url, domains=offer.domains, token=token)
            await self._enroller.enrol(enrolment, _BY, source="kubernetes")
            log.info("a Service was enrolled", client=offer.name, url=offer.url)
        else:
            await self._update(record, offer, token)

    async def _update(self, record: ClientRecord, offer: Offer, token: SecretStr) -> None:
        if self._vault.decrypt(record.secret, record.name) != token:
            await self._enroller.rotate(record.name, Rotation(token=token), _BY)
        if record.url != offer.url:
            await self._enroller.change(record.name, Change(url=offer.url), _BY, source="kubernetes")
        if record.state == "paused" and record.reason == _OUTSIDE:
            await self._enroller.change(record.name, Change(state="probation"), _BY)


def _namespace(record: ClientRecord) -> str:
    return record.name.partition(".")[2]
