"""Wiring of a router process: the rooms, opened in the order in which they need each other.

Each room builds its own components (``*_components.py``); a new one is added there.

    snapshots      keeps the state of the others; restores it before they read it
    clients        registry, connections, score requests; uses no other room (``clients.discovery`` enrols clients)
    objectives     anchors and gates; has anchors scored by ``clients``
    trust          honeypots, drift, quarantine; uses ``clients`` and ``objectives``
    learning       fits gates of ``objectives`` on the scores that ``trust`` accepts
    rewarding      fuses the scores of ``clients`` by the active gates; ``trust`` observes
    reward_stage   passes the groups of active runs through ``rewarding``
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog
from mor_core.background import in_background
from mor_core.errors import Invalid
from mor_core.redis_permissions import RedisPermissions
from mor_core.settings import secret_file
from mor_core.token_file import TokenFile

from mor_router.clients.client_components import ClientComponents, open_clients
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.secret_store import SecretStore
from mor_router.config import RouterSettings
from mor_router.learning.learning_components import LearningComponents, open_learning
from mor_router.objectives.objective_components import ObjectiveComponents, build_objectives
from mor_router.rekeying import rekey_all, wrong_key
from mor_router.resources import Resources, open_resources
from mor_router.reward_stage import RewardStage
from mor_router.rewarding.reward_components import RewardComponents, build_rewarding
from mor_router.snapshots.snapshot_folder import SnapshotFolder
from mor_router.snapshots.state_backup import StateBackup
from mor_router.trust.trust_components import TrustComponents, open_trust

if TYPE_CHECKING:
    from mor_router.clients.discovery import Discovery

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Router:
    """A router at work."""

    resources: Resources
    state_backup: StateBackup
    clients: ClientComponents
    objectives: ObjectiveComponents
    trust: TrustComponents
    learning: LearningComponents
    rewarding: RewardComponents
    reward_stage: RewardStage
    permissions: RedisPermissions

    async def ready(self) -> str | None:
        """Return the reason why the router cannot work, if any. It needs no clients: they enrol once it is ready."""
        await self.resources.redis.ping()
        problems = [
            await self.permissions.missing(),
            self.state_backup.problem,
            self.clients.pool.problem,
            self.objectives.gate_resolver.problem,
        ]
        if self.resources.settings.worker:
            problems.append(self.reward_stage.problem)
        return next((problem for problem in problems if problem is not None), None)


@asynccontextmanager
async def open_router(settings: RouterSettings, egress: EgressPolicy, tokens: TokenFile) -> AsyncIterator[Router]:
    """Run a router until the body ends. No client may have a credential that is one of ``tokens``.

    Raises:
        Invalid: no usable ``MOR_SECRET_KEY``, or a model or package that cannot be loaded.
    """
    secret_store = SecretStore(settings.secret_key, file=secret_file("secret_key"))
    async with open_resources(settings) as resources:
        folder = settings.router_state_dir
        backup = StateBackup(
            resources.redis,
            None if folder is None else SnapshotFolder(folder, settings.router_state_keep),
            partial(wrong_key, secret_store=secret_store),
            elsewhere=settings.router_state_elsewhere,
        )
        await backup.try_check()
        if settings.bind_secrets:
            await _bind_secrets(resources)
        async with (
            in_background(backup.keep_checking, backup.keep_saving),
            _open_rooms(resources, backup, secret_store, egress, tokens) as router,
        ):
            yield router


async def _bind_secrets(resources: Resources) -> None:
    """Bind the secrets that an earlier version stored. One that cannot be decrypted stays as it is and is refused."""
    store = SecretStore(resources.settings.secret_key, reads_unbound=True)
    result = await rekey_all(resources.redis, store)
    cure = "repair the others, which stay refused" if result.problems else "unset MOR_BIND_SECRETS"
    log.info("secrets are bound", secrets=result.clients + result.labellers, cure=cure)
    for problem in result.problems:
        log.error("a secret is not bound", problem=problem)


@asynccontextmanager
async def _open_rooms(
    resources: Resources, backup: StateBackup, secret_store: SecretStore, egress: EgressPolicy, tokens: TokenFile
) -> AsyncIterator[Router]:
    settings = resources.settings
    async with open_clients(resources, secret_store, egress, tokens) as clients:
        objectives = build_objectives(resources, clients)
        async with (
            open_trust(resources, clients, objectives) as trust,
            open_learning(resources, clients, objectives, trust) as learning,
        ):
            rewarding = build_rewarding(resources, clients, objectives, trust)
            reward_stage = RewardStage(resources.redis, settings, clients.pool, rewarding.pipeline)
            work = [reward_stage.work] if settings.worker else []
            others = [_discovery(resources, clients).run] if settings.kubernetes_namespaces else []
            async with in_background(*work, others=others), rewarding.coalescer:
                permissions = RedisPermissions(resources.redis, "router")
                yield Router(
                    resources, backup, clients, objectives, trust, learning, rewarding, reward_stage, permissions
                )


def _discovery(resources: Resources, clients: ClientComponents) -> Discovery:
    """Build discovery, which needs an optional package.

    Raises:
        Invalid: the package is not installed.
    """
    try:
        from mor_router.clients.discovery import Discovery
    except ImportError as error:
        raise Invalid(
            "MOR_KUBERNETES_NAMESPACES is set and the Kubernetes client is not installed; "
            "install mor-router[kubernetes], or unset the variable"
        ) from error
    return Discovery(
        settings=resources.settings,
        redis=resources.redis,
        registry=clients.registry,
        enroller=clients.enroller,
        egress=clients.egress,
        secret_store=clients.secret_store,
    )
