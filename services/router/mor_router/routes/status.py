"""``/v1/status``."""

from __future__ import annotations

from fastapi import APIRouter
from mor_core.clients import ClientStatus
from mor_core.visibility import visible

from mor_router import __version__
from mor_router.routes.context import Reader, Running
from mor_router.schemas import RouterStatus

routes = APIRouter(prefix="/v1", tags=["status"])

_DEFAULT_EMBEDDER = (
    "words, colours and edges: separates kinds of questions and pictures, without their meaning; "
    "set MOR_EMBED_TEXT_MODEL and MOR_EMBED_IMAGE_MODEL for finer regions"
)


@routes.get("/status", summary="Configuration and state of this router")
async def status(router: Running, caller: Reader) -> RouterStatus:
    lines = []
    for name, record in sorted(router.clients.pool.records.items()):
        pool = router.clients.pool
        lines.append(
            ClientStatus(client=record.public(), circuit=pool.circuit_state(name), last_error=pool.last_error(name))
        )
    without_models = (
        router.resources.settings.embed_text_model is None or router.resources.settings.embed_image_model is None
    )
    found = RouterStatus(
        version=__version__,
        embedder=router.resources.embedder.name,
        embedder_note=_DEFAULT_EMBEDDER if without_models else None,
        fusion=router.resources.settings.fusion,
        quorum=router.resources.settings.quorum,
        runs=tuple(router.reward_stage.runs),
        active_clients=len(router.clients.pool.names_in_state("active")),
        state_problem=router.state_backup.problem or router.state_backup.warning,
        clients=tuple(lines),
        objectives=tuple(await router.objectives.store.all()),
    )
    return visible(found, caller.scope, caller.name)
