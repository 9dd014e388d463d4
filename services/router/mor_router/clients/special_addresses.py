"""Addresses with a special purpose, from IANA's registries: none of them is a public host.

IPv4 follows iana-ipv4-special-registry, IPv6 iana-ipv6-special-registry and ipv6-address-space, all as of October 2025.
The tables hold the blocks that are not globally reachable, and the smaller ones inside them that are. A few public
addresses belong to the metadata services of clouds, which give their callers credentials.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Block = ipaddress.IPv4Network | ipaddress.IPv6Network

_NOT_PUBLIC = {
    "0.0.0.0/8": "this network, RFC 791",
    "10.0.0.0/8": "private use, RFC 1918",
    "100.64.0.0/10": "shared address space of providers, RFC 6598",
    "127.0.0.0/8": "loopback, RFC 1122",
    "169.254.0.0/16": "link-local, RFC 3927",
    "172.16.0.0/12": "private use, RFC 1918",
    "192.0.0.0/24": "protocol assignments, RFC 6890",
    "192.0.2.0/24": "documentation, RFC 5737",
    "192.88.99.0/24": "6to4 relays, RFC 7526",
    "192.168.0.0/16": "private use, RFC 1918",
    "198.18.0.0/15": "benchmarks, RFC 2544",
    "198.51.100.0/24": "documentation, RFC 5737",
    "203.0.113.0/24": "documentation, RFC 5737",
    "224.0.0.0/4": "multicast, RFC 5771",
    "240.0.0.0/4": "reserved, RFC 1112",
    "2001::/23": "protocol assignments, RFC 2928",
    "2001:db8::/32": "documentation, RFC 3849",
    "2002::/16": "6to4, RFC 3056",
    "3fff::/20": "documentation, RFC 9637",
}
_PUBLIC_INSIDE = (
    *("192.0.0.9/32", "192.0.0.10/32"),
    *("2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:3::/32", "2001:4:112::/48", "2001:20::/28"),
    "2001:30::/28",
)
"""Globally reachable assignments inside the blocks above: anycast services, AMT, AS112, ORCHIDv2 and drone ids."""

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""The only part of IPv6 from which public addresses are assigned, RFC 4291."""

METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            *("169.254.169.254", "169.254.170.2", "fd00:ec2::254"),  # AWS, EC2 and ECS; most other clouds use the first
            "fd20:ce::254",  # Google Cloud
            "168.63.129.16",  # Azure, a public address
            "100.100.100.200",  # Alibaba Cloud
            "192.0.0.192",  # Oracle Cloud
            *("169.254.42.42", "fd00:42::42"),  # Scaleway
        ),
    )
)
"""Metadata services of clouds."""

_EMBEDDING = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "::ffff:0:0/96",  # IPv4-mapped, RFC 4291
            "::ffff:0:0:0/96",  # IPv4-translated, RFC 2765
            "64:ff9b::/96",  # NAT64, RFC 6052
        ),
    )
)
"""IPv6 blocks whose last 32 bits are the IPv4 address that a connection reaches."""
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
"""Local-use NAT64, RFC 8215: reaches an IPv4 address at a place in its bits that only the local network knows."""

_BLOCKS: tuple[tuple[Block, str], ...] = tuple((ipaddress.ip_network(name), why) for name, why in _NOT_PUBLIC.items())
_EXCEPTIONS: tuple[Block, ...] = tuple(map(ipaddress.ip_network, _PUBLIC_INSIDE))


def effective_address(address: str) -> Address:
    """Return the address that a connection to ``address`` reaches: the IPv4 address inside an IPv6 one, if any."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return parsed
    if any(parsed in block for block in _EMBEDDING):
        return ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    return parsed.sixtofour or parsed


def special_purpose(address: Address) -> str | None:
    """Return the special purpose of an address, or ``None`` for one that may belong to a public host."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return "outside of the global unicast addresses, RFC 4291"
    if _inside(address, _EXCEPTIONS):
        return None
    return next((why for block, why in _BLOCKS if address.version == block.version and address in block), None)


def never_a_host(address: Address) -> bool:
    """Return whether no endpoint may have this address, whatever networks the operator allows."""
    return (
        address in METADATA
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address == ipaddress.IPv4Address("255.255.255.255")
        or (isinstance(address, ipaddress.IPv6Address) and address in _LOCAL_NAT64)
    )


def _inside(address: Address, blocks: tuple[Block, ...]) -> bool:
    return any(address.version == block.version and address in block for block in blocks)
