"""``/v1/objectives``: create objectives, upload anchors, fit gates, choose the active gate version."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from mor_core.image_budget import on_decoder
from mor_core.json_route import JsonRoute, UploadRoute
from mor_core.openapi import problems
from mor_core.paging import MOST_ENTRIES, After, PageLimit, page
from mor_core.stored_objectives import (
    DeletedObjective,
    FitRequest,
    NewObjective,
    Objective,
    ObjectiveChange,
    RefitRequest,
)

from mor_router import metrics
from mor_router.learning.labels import LabellerChoice, StoredLabeller
from mor_router.objectives.gates import GateSummary, GateVersion
from mor_router.objectives.objective_content import measure_objective
from mor_router.objectives.upload import read_upload
from mor_router.routes.context import Admin, Reader, Running, Service
from mor_router.routes.pairs_body import PAIRS_BODY, PublicPairs, read_pairs_body

routes = APIRouter(prefix="/v1/objectives", tags=["objectives"], route_class=JsonRoute)
uploads = APIRouter(prefix="/v1/objectives", tags=["objectives"], route_class=UploadRoute)


@routes.post("", status_code=201, summary="Create an objective", responses=problems(409))
async def create(request: NewObjective, router: Running, caller: Admin) -> Objective:
    objective = await router.objectives.store.add(request)
    router.resources.audit.record("objective", request.name, caller.name)
    router.objectives.gate_resolver.invalidate()
    return objective


@routes.get("", summary="Objectives by name")
async def listing(router: Running, _: Reader, after: After = None, limit: PageLimit = MOST_ENTRIES) -> list[Objective]:
    return page(await router.objectives.store.all(), lambda objective: objective.name, after, limit)


@routes.get("/{name}", summary="One objective")
async def one(name: str, router: Running, _: Reader) -> Objective:
    return await router.objectives.store.get(name)


@routes.patch("/{name}", summary="Change the paraphrases or the audits of an objective", responses=problems(409))
async def change(name: str, request: ObjectiveChange, router: Running, caller: Admin) -> Objective:
    objective = await router.objectives.store.change(name, request)
    router.resources.audit.record("objective", name, caller.name, changed=", ".join(sorted(request.model_fields_set)))
    router.objectives.gate_resolver.invalidate()
    return objective


@routes.delete("/{name}", summary="Delete an objective with its anchors and gate versions")
async def remove(
    name: str,
    router: Running,
    caller: Admin,
    *,
    dry_run: Annotated[bool, Query(description="Delete nothing, and return what would be removed.")] = False,
) -> DeletedObjective:
    """Delete an objective with anchors, pictures, cached scores, audits and gate versions. Runs that name it are scored
    as if there were none: end them first."""
    content = await measure_objective(router.resources.redis, name)
    if dry_run:
        return content.model_copy(update={"dry_run": True})
    await router.objectives.store.remove(name)
    router.resources.audit.record("objective", name, caller.name, deleted="true")
    metrics.remove_objective(name)
    router.objectives.gate_resolver.invalidate()
    return content


@uploads.put("/{name}/anchors", summary="Upload the anchor set", openapi_extra=PAIRS_BODY, responses=problems(409))
async def anchors(
    name: str,
    request: Request,
    router: Running,
    caller: Admin,
    *,
    public: PublicPairs = False,
) -> Objective:
    """Replace the anchor set by a ``mor.prefs/1`` file: as the body, with images as data URIs, or as the form field
    ``anchors`` with one field ``images`` for each picture. All lines are checked before anything is stored; an error
    names the line. Cached scores of anchors that stay are kept."""
    await router.objectives.store.get(name)
    lines, files = await read_pairs_body(request)
    pairs, images = await on_decoder(partial(read_upload, lines, files, public=public))
    objective = await router.objectives.store.put_anchors(name, pairs, images)
    router.resources.audit.record("anchors", name, caller.name, pairs=len(pairs), public=public)
    return objective


@routes.post("/{name}/fit", summary="Fit a gate version on the anchors", responses=problems(409))
async def fit(name: str, router: Running, caller: Admin, request: FitRequest | None = None) -> GateSummary:
    """Have every client that is active or on probation score the anchors that it has not scored with its present model,
    fit calibration and gate, and return the report. By default the version becomes active, and with it those of its
    clients that were on probation."""
    options = request or FitRequest()
    gate = await router.learning.gate_fitter.fit(
        name, caller.name, activate=options.activate, newcomers_only=options.newcomers_only
    )
    router.objectives.gate_resolver.invalidate()
    return gate.summary()


@routes.put("/{name}/labeller", summary="Set the labeller of the policy's own responses")
async def put_labeller(name: str, choice: LabellerChoice, router: Running, caller: Admin) -> StoredLabeller:
    """Set a checker (an endpoint of the reward contract, or a function installed with the router) or a judge (an
    OpenAI-compatible model). Its token is stored encrypted and never returned."""
    await router.objectives.store.get(name)
    stored = await router.learning.labellers.put(name, choice)
    router.resources.audit.record("labeller", name, caller.name, kind=stored.kind, name=stored.name)
    return stored


@routes.get("/{name}/labeller", summary="Labeller of the policy's own responses")
async def get_labeller(name: str, router: Running, _: Service) -> StoredLabeller | None:
    await router.objectives.store.get(name)
    return await router.learning.labellers.get(name)


@routes.delete(
    "/{name}/labeller", status_code=204, summary="Remove the labeller; refits weight old anchors by similarity"
)
async def remove_labeller(name: str, router: Running, caller: Admin) -> None:
    await router.objectives.store.get(name)
    await router.learning.labellers.remove(name)
    router.resources.audit.record("labeller", name, caller.name, deleted="true")


@routes.post("/{name}/refit", summary="Fit a gate version on the policy's present responses", responses=problems(409))
async def refit(name: str, router: Running, caller: Admin, request: RefitRequest | None = None) -> GateSummary:
    """Have the policy answer questions of the anchors and the objective's checker or judge label the responses; add the
    labelled pairs to the anchors, and fit a gate version on all. Without checker or judge, fit on the old anchors that
    are most similar to the policy's responses. ``refitted`` of the returned summary has the outcome."""
    gate = await router.learning.online_refit.refit(name, caller.name, activate=(request or RefitRequest()).activate)
    router.objectives.gate_resolver.invalidate()
    return gate.summary()


@routes.get("/{name}/gates", summary="Gate versions of an objective, oldest first")
async def versions(
    name: str, router: Running, _: Service, after: After = None, limit: PageLimit = MOST_ENTRIES
) -> list[GateSummary]:
    await router.objectives.store.get(name)
    return page(await router.objectives.gates.all(name), lambda gate: str(gate.version), after, limit)


@routes.get("/{name}/gates/{version}", summary="One gate version with all parameters")
async def version(name: str, version: int, router: Running, _: Service) -> GateVersion:
    return await router.objectives.gates.get(name, version)


@routes.post("/{name}/gates/{version}/activate", summary="Activate a gate version", responses=problems(409))
async def activate(name: str, version: int, router: Running, caller: Admin) -> Objective:
    objective = await router.learning.gate_fitter.activate(name, version, caller.name)
    router.objectives.gate_resolver.invalidate()
    return objective


@routes.post("/{name}/gates/rollback", summary="Activate the previous gate version", responses=problems(409))
async def rollback(
    name: str,
    router: Running,
    caller: Admin,
    *,
    to_uniform: Annotated[
        bool, Query(description="Return to equal weights where the present version is the first.")
    ] = False,
) -> Objective:
    """Activate the version before the present one. `activate` of a later version is the way forward again."""
    objective = await router.objectives.store.roll_back(name, to_uniform=to_uniform)
    router.resources.audit.record("rollback", name, caller.name, version=objective.active)
    router.objectives.gate_resolver.invalidate()
    return objective
