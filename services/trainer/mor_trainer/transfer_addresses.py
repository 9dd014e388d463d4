"""Check of the addresses between which weights are broadcast (``MOR_TRANSFER_ENGINES``, ``MOR_TRANSFER_ADDRESS``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from urllib.parse import urlsplit

from mor_core.loopback import is_loopback


def check_transfer(engines: Sequence[str], own: str | None) -> None:
    """Check that a broadcast can begin. ``own``: address of this process, if one is set.

    Raises:
        ValueError: it cannot.
    """
    for engine in engines:
        if urlsplit(engine).scheme not in ("http", "https") or not urlsplit(engine).hostname:
            raise ValueError(f"MOR_TRANSFER_ENGINES: got {engine!r}; wanted: addresses as http://host:port")
    if importlib.util.find_spec("vllm") is None:
        raise ValueError("MOR_TRANSFER_ENGINES needs vLLM, which is not installed; install mor-trainer[nccl]")
    if own is None:  # the address from which the first engine is reached
        return
    if ":" in own:
        raise ValueError(
            f"MOR_TRANSFER_ADDRESS: got {own!r}; wanted: an IPv4 address or a name, without a port. vLLM's groups "
            "cannot listen on IPv6: leave MOR_TRANSFER_ENGINES out there, and engines pull the files"
        )
    if is_loopback(own) and not all(is_loopback(urlsplit(engine).hostname or "") for engine in engines):
        raise ValueError(
            f"MOR_TRANSFER_ADDRESS is {own}, which engines on other machines cannot reach; set it to this machine's "
            "address as seen from MOR_TRANSFER_ENGINES, such as the pod's"
        )
