"""Enrolling a client: its address is judged, its card read and a tiny group scored before anything is kept."""

from __future__ import annotations

import time

from mor_core.auth import hash_token, new_token
from mor_core.clients import Change, Enrolled, Enrolment, Rotated, Rotation, Source
from mor_core.errors import Conflict, Invalid, NotFound
from mor_core.wire import Card

from mor_router import metrics
from mor_router.audit import Audit
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.honeypot_scores import LiveAnswers
from mor_router.clients.pool import Pool
from mor_router.clients.probe_item import TRIAL_IMAGES, TRIAL_ITEM
from mor_router.clients.registry import ClientRecord, Registry, new_revision
from mor_router.clients.responses import ClientFailure
from mor_router.clients.secret_store import Vault

_CARD_TIMEOUT_S = 10.0
_TRIAL_TIMEOUT_S = 30.0


class Enroller:
    def __init__(
        self,
        *,
        registry: Registry,
        pool: Pool,
        vault: Vault,
        policy: EgressPolicy,
        live: LiveAnswers,
        audit: Audit,
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._vault = vault
        self._policy = policy
        self._live = live
        self._audit = audit

    async def enrol(self, request: Enrolment, by: str, source: Source | None = None) -> Enrolled:
        """Without ``source`` the address is judged as one that came in by API.

        Raises:
            Invalid: the address is outside of the egress policy, or the endpoint failed its trial; with the cure.
            Conflict: the name is taken.
        """
        try:
            await self._registry.get(request.name)
        except NotFound:
            pass
        else:
            raise Conflict(f"client {request.name!r} is enrolled already; PATCH or rotate it, or DELETE it first")
        token = new_token() if request.page_token_sha256 is None else None
        record = ClientRecord(
            name=request.name,
            url=request.url.rstrip("/"),
            domains=request.domains,
            source=source or await self._policy.admit(request.url),
            state=request.state,
            enrolled_at=time.time(),
            secret=self._vault.encrypt(request.token),
            inbound_sha256=request.page_token_sha256 or hash_token(token or ""),
            revision=new_revision(),
        )
        card, trial = await self._try(record)
        found = {
            "card": card,
            "model": card.model,
            "probed_at": time.time(),
            "domains": request.domains or card.domains,
        }
        record = record.model_copy(update=found)
        await self._registry.add(record)
        self._audit.record("enrol", record.name, by, url=record.url, source=record.source, state=record.state)
        await self._pool.refresh()
        return Enrolled(client=record.public(), token=token, trial=trial)

    async def change(self, name: str, request: Change, by: str, source: Source | None = None) -> ClientRecord:
        """Without ``source`` a new address is judged as one that came in by API.

        Raises:
            NotFound: no such client.
            Invalid: the new address is outside of the egress policy, or failed its trial.
        """
        given = request.model_dump(exclude_unset=True, exclude_none=True)
        cleared = {"reason": request.reason, "distrusted_at": None}
        changed = {**given, **(cleared if "state" in given else {})}
        if request.url is not None:
            moved = {
                "url": request.url.rstrip("/"),
                "source": source or await self._policy.admit(request.url),
                "revision": new_revision(),
            }
            card, _ = await self._try((await self._registry.get(name)).model_copy(update=moved))
            changed |= {**moved, "card": card, "model": card.model, "probed_at": time.time()}
        record = await self._registry.update(name, lambda known: known.model_copy(update=changed))
        self._audit.record("change", name, by, **given)
        await self._pool.refresh()
        return record

    async def rotate(self, name: str, request: Rotation, by: str) -> Rotated:
        """
        Raises:
            NotFound: no such client.
            Invalid: nothing to rotate, or the client does not accept the new token.
        """
        if request.token is None and not request.inbound:
            raise Invalid("nothing to rotate: give 'token' (sent to the client), or 'inbound': true (the client's own)")
        changed: dict[str, object] = {}
        if request.token is not None:
            changed = {"secret": self._vault.encrypt(request.token), "revision": new_revision()}
            await self._try((await self._registry.get(name)).model_copy(update=changed))
        token = new_token() if request.inbound else None
        if token is not None:
            changed["inbound_sha256"] = hash_token(token)
        record = await self._registry.update(name, lambda known: known.model_copy(update=changed))
        kinds = [kind for kind, given in (("outbound", request.token), ("inbound", token)) if given is not None]
        self._audit.record("rotate", name, by, tokens=" and ".join(kinds))
        await self._pool.refresh()
        return Rotated(client=record.public(), token=token)

    async def revoke(self, name: str, by: str) -> None:
        """
        Raises:
            NotFound: no such client.
        """
        await self._registry.remove(name)
        await self._live.forget(name)
        self._audit.record("revoke", name, by)
        await self._pool.refresh()
        metrics.forget(name)

    async def _try(self, record: ClientRecord) -> tuple[Card, str]:
        """The card, and what became of the trial group.

        Raises:
            Invalid: what failed, and the cure.
        """
        client = self._pool.connect(record)
        try:
            card = await client.card(_CARD_TIMEOUT_S)
            answer = (await client.score([TRIAL_ITEM], TRIAL_IMAGES, _TRIAL_TIMEOUT_S))[TRIAL_ITEM.item_id]
        except ClientFailure as failure:
            raise Invalid(f"client {record.name!r} at {record.url}: {failure}") from failure
        finally:
            await client.close()
        if answer.status not in ("ok", "unscorable"):
            raise Invalid(
                f"client {record.name!r} at {record.url} failed a trial group of two responses: "
                f"{answer.status}, {answer.detail}"
            )
        return card, f"{answer.status}: {answer.scores or answer.detail}"


def reseal(record: ClientRecord, vault: Vault) -> ClientRecord:
    """The record with its secret under the vault's first key.

    Raises:
        Invalid: none of the vault's keys opens it.
    """
    return record.model_copy(update={"secret": vault.reseal(record.secret, record.name)})
