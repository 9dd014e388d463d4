"""``/v1/objectives/{name}/candidates`` and ``/proposals``: unlabelled pairs, and those worth labelling next."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from mor_core.image_budget import on_decoder
from mor_core.json_route import JsonRoute, UploadRoute
from mor_core.openapi import problems
from mor_core.proposals import MOST_COUNT, CandidateCounts, LabelProposal, ProposalRequest

from mor_router.objectives.upload import read_upload
from mor_router.routes.context import Admin, LabellerOrAdmin, Running
from mor_router.routes.pairs_body import PAIRS_BODY, PublicPairs, read_pairs_body

routes = APIRouter(prefix="/v1/objectives", tags=["proposals"], route_class=JsonRoute)
uploads = APIRouter(prefix="/v1/objectives", tags=["proposals"], route_class=UploadRoute)


@uploads.put("/{name}/candidates", summary="Upload unlabelled pairs", openapi_extra=PAIRS_BODY, responses=problems(409))
async def candidates(
    name: str,
    request: Request,
    router: Running,
    caller: Admin,
    *,
    public: PublicPairs = False,
) -> CandidateCounts:
    """Have every client score pairs of a ``mor.prefs/1`` file, and keep them as candidates for labels, in place of the
    pairs that were uploaded before. Which response is ``chosen`` means nothing. Pairs that are anchors or wait for a
    label, and those that no client may be sent, are left out and counted."""
    await router.objectives.store.get(name)
    lines, files = await read_pairs_body(request)
    pairs, images = await on_decoder(partial(read_upload, lines, files, public=public))
    return await router.learning.candidate_upload.put(name, pairs, images, caller.name)


@routes.get("/{name}/proposals", summary="Pairs worth labelling next", responses=problems(409))
async def preview(
    name: str,
    router: Running,
    _: LabellerOrAdmin,
    *,
    count: Annotated[int, Query(ge=1, le=MOST_COUNT, description="Largest number of pairs.")] = 16,
) -> LabelProposal:
    """Rank the unlabelled pairs of kept live groups and of the upload by what their labels would tell a fit, the most
    valuable first. Nothing changes; a ranking may be ten seconds old."""
    return await router.learning.label_proposals.preview(name, count)


@routes.post("/{name}/proposals", summary="Have the most valuable pairs labelled", responses=problems(409))
async def propose(name: str, router: Running, caller: Admin, request: ProposalRequest | None = None) -> LabelProposal:
    """Move the pairs worth labelling next to the queue of audited groups, where the objective's labeller or people
    label them. A labelled pair becomes an anchor of the next fit. It counts in no test of the clients, because it was
    chosen by their scores."""
    return await router.learning.label_proposals.propose(name, (request or ProposalRequest()).count, caller.name)
