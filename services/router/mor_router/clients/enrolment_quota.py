"""Quotas of enrolments with tokens of scope ``enrolment``, counted in Redis for all replicas together.

An attempt makes the router connect to an address that the caller chose. Failed attempts count like others, so that the
probe of an enrolment can neither scan a network nor flood a host. A token has half of a network's attempts at most, so
that others can still enrol there. The probe connects to addresses that were counted,
one in each network: the caller's name server is not asked again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from mor_core.errors import Overloaded
from redis.asyncio import Redis

from mor_router.clients.egress import EgressPolicy
from mor_router.clients.minute_quota import MinuteQuota
from mor_router.clients.registry import ClientRecord
from mor_router.clients.special_addresses import effective_address
from mor_router.config import RouterSettings

_PREFIXES = {4: 24, 6: 48}
"""Version of an address -> length of the prefix that one owner usually has."""
_MOST_NETWORKS = 8
"""Networks counted, and addresses connected to, for one name: a name server may answer with any number of addresses."""
_FULL_RETRY_S = 600.0
"""``Retry-After`` where a token has enrolled its clients: people have to act first."""


class EnrolmentQuota:
    """Limits on attempts by one token, on attempts at one network, and on the clients of one token."""

    def __init__(self, redis: Redis, settings: RouterSettings, egress: EgressPolicy) -> None:
        self._minutes = MinuteQuota(redis)
        self._settings = settings
        self._egress = egress

    async def take(self, token: str, url: str) -> EgressPolicy:
        """Count an attempt to enrol ``url`` with the token of this name; return the policy that it connects by.

        Raises:
            Overloaded: the token or the network has no attempts left in this minute.
        """
        most = self._settings.enrolments_per_minute
        await self._count(("token", token), most, f"by this token, MOR_ENROLMENTS_PER_MINUTE={most}")
        most = self._settings.enrolments_per_network
        found = await self._networks(url)
        half = max(1, most // 2)
        for network in sorted(found):  # what is over a token's half does not count in the attempts of all
            own = f"by this token in one network, half of MOR_ENROLMENTS_PER_NETWORK={most}"
            await self._count(("half", network, token), half, own)
        for network in sorted(found):
            await self._count(("network", network), most, f"in one network, MOR_ENROLMENTS_PER_NETWORK={most}")
        return self._egress.pinned(found.values())

    def check_room(self, token: str, records: Collection[ClientRecord]) -> None:
        """Check that the token of this name may enrol one more client.

        Raises:
            Overloaded: it has enrolled as many as it may.
        """
        most = self._settings.clients_per_token
        if sum(record.enrolled_by == token for record in records) >= most:
            raise Overloaded(
                f"this token has enrolled {most} clients, and MOR_CLIENTS_PER_TOKEN allows no more; have one of them "
                "removed, or request another token",
                _FULL_RETRY_S,
            )

    async def _count(self, subject: tuple[str, ...], most: int, limit: str) -> None:
        count, left_s = await self._minutes.add(subject)
        if count > most:
            raise Overloaded(f"too many enrolments in a minute {limit}; try again in {left_s} s", left_s)

    async def _networks(self, url: str) -> dict[str, str]:
        """Return the networks of a URL's host, each with an address in it.

        There are none where the URL is malformed or the name unknown: the enrolment then has nowhere to connect to.
        """
        try:
            parts = urlsplit(url)
            found = await self._egress.lookup(parts.hostname or "", parts.port or 0)
        except (ValueError, OSError):
            return {}
        networks: dict[str, str] = {}
        for address in found:
            networks.setdefault(_network(address), address)
        return dict(list(networks.items())[:_MOST_NETWORKS])


def _network(address: str) -> str:
    """Return the network of an address; of a name that the proxy will look up, itself."""
    try:
        reached = effective_address(address)
    except ValueError:
        return address.lower()
    return str(ipaddress.ip_network((reached, _PREFIXES[reached.version]), strict=False))
