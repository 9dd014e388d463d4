"""Python SDK of MoR, over HTTP only. Example::

    from mor_client import Mor

    with Mor() as mor:                      # addresses and token from the environment or the configuration file
        run = mor.runs.create(RunSpec(name="first", model="/models/base", prompts="/data/prompts.jsonl"))
        for snapshot in mor.runs.watch(run.id):
            print(snapshot.step, snapshot.eta_s)

Every call has a time limit. It raises ``ServiceError`` with the cure on failure.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mor_client.config import ClientSettings
    from mor_client.errors import ServiceError
    from mor_client.sdk import Mor

__version__ = "0.1.0"

__all__ = ["ClientSettings", "Mor", "ServiceError", "__version__"]

_HOMES = {"ClientSettings": "config", "ServiceError": "errors", "Mor": "sdk"}


def __getattr__(name: str) -> Any:
    """Import on first use: the entry of the command ``mor`` imports this package before it can handle Ctrl-C."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
