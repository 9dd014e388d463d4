"""Enrolment of clients: the router checks the address, reads the card and has a probe item scored, then stores it."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

from mor_core.auth import TokenFile, hash_token, new_token
from mor_core.clients import Change, Enrolled, Enrolment, Rotated, Rotation, Source
from mor_core.errors import Conflict, Invalid
from mor_core.server_clock import SERVER_CLOCK
from mor_core.wire import Asks, Card
from pydantic import SecretStr

from mor_router import metrics
from mor_router.audit import AuditLog
from mor_router.clients.egress import EgressPolicy
from mor_router.clients.enrolment_quota import EnrolmentQuota
from mor_router.clients.former_distrust import FormerDistrust
from mor_router.clients.pool import ClientPool
from mor_router.clients.probe_item import PROBE_IMAGES, PROBE_ITEM
from mor_router.clients.registry import ClientRecord, ClientRegistry, new_revision, next_generation
from mor_router.clients.responses import ClientFailure
from mor_router.clients.secret_store import SecretStore

_CARD_TIMEOUT_S = 10.0
"""Seconds for the card, with TLS and a slow name server."""
_PROBE_TIMEOUT_S = 30.0
"""Seconds for the probe item: a reward service may load its model at the first request."""


class Enroller:
    """Enrolment, change, rotation and revocation of clients, with their audit records."""

    def __init__(
        self,
        *,
        registry: ClientRegistry,
        pool: ClientPool,
        secret_store: SecretStore,
        egress: EgressPolicy,
        audit: AuditLog,
        tokens: TokenFile,
        service_token: SecretStr,
        quota: EnrolmentQuota,
        former: FormerDistrust,
        unknown_asks: Asks,
    ) -> None:
        """``unknown_asks``: rule of clients that no admin has enrolled."""
        self._registry = registry
        self._pool = pool
        self._secret_store = secret_store
        self._egress = egress
        self._audit = audit
        self._tokens = tokens
        self._service_token = service_token
        self._quota = quota
        self._former = former
        self._unknown_asks = unknown_asks

    async def enrol(
        self,
        request: Enrolment,
        by: str,
        source: Source | None = None,
        *,
        enrolled_by: str | None = None,
        egress: EgressPolicy | None = None,
    ) -> Enrolled:
        """Enrol a client. Without ``source`` its address is checked like one sent to the API.

        ``enrolled_by``: name of the enrolment token, whose number of clients is limited; ``egress``: policy for the
        addresses that its quota counted. One in place of a distrusted client begins distrusted, unless an admin enrols
        it.

        Raises:
            Invalid: the address is outside of the egress policy, or the endpoint failed the probe.
            Conflict: the name or a credential is taken.
            Overloaded: the enrolment token has enrolled as many clients as it may.
        """
        token = new_token() if request.page_token_sha256 is None else None
        page_token_sha256 = request.page_token_sha256 or hash_token(token or "")

        def check(records: Collection[ClientRecord]) -> None:
            if any(record.name == request.name for record in records):
                raise Conflict(
                    f"client {request.name!r} is enrolled already; change it (mor client pause, resume, rotate), or "
                    f"remove it first: mor client remove {request.name}"
                )
            if enrolled_by is not None:
                self._quota.check_room(enrolled_by, records)
            self._check_credentials(records, outbound=request.token, page_token_sha256=page_token_sha256)

        check(await self._registry.all())
        by_admin = enrolled_by is None and source is None
        url, source = request.url.rstrip("/"), source or await (egress or self._egress).admit(request.url)
        record = ClientRecord(
            name=request.name,
            url=url,
            domains=request.domains,
            asks=request.asks if by_admin else request.asks.within(self._unknown_asks),
            source=source,
            state=request.state,
            enrolled_at=SERVER_CLOCK.now(),
            secret="",
            generation=next_generation(),
            inbound_sha256=page_token_sha256,
            enrolled_by=enrolled_by,
            revision=new_revision(),
        )
        if not by_admin and (former := await self._former.of(record)) is not None:
            reason = f"in place of client {former}, which was distrusted when it was removed; PATCH restores trust"
            distrust = {"state": "probation", "reason": reason, "distrusted_at": record.enrolled_at}
            record = record.model_copy(update=distrust)
        record = self._sealed(record, request.token)
        card, trial = await self._probe(record, egress)
        found = {
            "card": card,
            "model": card.model,
            "probed_at": SERVER_CLOCK.now(),
            "domains": request.domains or card.domains,
        }
        record = record.model_copy(update=found)
        await self._registry.add(record, check)
        self._audit.record("enrol", record.name, by, url=record.url, source=record.source, state=record.state)
        await self._pool.refresh()
        return Enrolled(client=record.public(), token=token, trial=trial)

    async def change(self, name: str, request: Change, by: str, source: Source | None = None) -> ClientRecord:
        """Change state, address or domains of a client.

        Without ``source`` a new address is checked like one sent to the API.

        Raises:
            NotFound: no such client.
            Invalid: the new address is outside of the egress policy, or failed the probe.
            Conflict: it is to resume and is not paused.
        """
        given = request.model_dump(exclude_unset=True, exclude_none=True)
        own = {"state", "reason"} if "state" in given else set()
        changed = {name: getattr(request, name) for name in given.keys() - own}
        if request.url is not None:
            moved = {
                "url": request.url.rstrip("/"),
                "source": source or await self._egress.admit(request.url),
                "revision": new_revision(),
            }
            card, _ = await self._probe(self._moved(await self._registry.get(name), moved))
            changed |= {**moved, "card": card, "model": card.model, "probed_at": SERVER_CLOCK.now()}

        def change(known: ClientRecord) -> ClientRecord:
            moved = self._moved(known, changed)
            return moved if request.state is None else moved.moved_to(request.state, request.reason)

        record = await self._registry.update(name, change)
        self._audit.record("change", name, by, **given)
        await self._pool.refresh()
        return record

    def _moved(self, record: ClientRecord, changed: dict[str, Any]) -> ClientRecord:
        """Return the record with changes; its secret is bound to the new address, if that changed.

        Raises:
            Invalid: its secret cannot be decrypted.
        """
        new = record.model_copy(update=changed)
        if new.owner == record.owner:
            return new
        secret = self._secret_store.decrypt(record.secret, record.owner)
        return self._sealed(new.model_copy(update={"generation": next_generation(record.generation)}), secret)

    def _sealed(self, record: ClientRecord, secret: SecretStr) -> ClientRecord:
        """Return the record with ``secret``, bound to it."""
        return record.model_copy(update={"secret": self._secret_store.encrypt(secret, record.owner)})

    async def rotate(self, name: str, request: Rotation, by: str) -> Rotated:
        """Replace the token that the router sends, the client's own token, or both.

        Raises:
            NotFound: no such client.
            Invalid: nothing to rotate, or the client does not accept the new token.
        """
        if request.token is None and not request.inbound:
            raise Invalid("nothing to rotate: give 'token' (sent to the client), or 'inbound': true (the client's own)")
        known = await self._registry.get(name)
        changed: dict[str, object] = {"generation": next_generation(known.generation)}
        token = new_token() if request.inbound else None
        if token is not None:
            changed["inbound_sha256"] = hash_token(token)
        if request.token is not None:
            self._check_credentials(await self._registry.all(), outbound=request.token)
            changed["revision"] = new_revision()
            await self._probe(self._sealed(known.model_copy(update=changed), request.token))

        def change(present: ClientRecord) -> ClientRecord:
            if present.owner != known.owner:
                raise Conflict(f"address or credentials of client {name!r} were changed meanwhile; rotate again")
            secret = request.token or self._secret_store.decrypt(present.secret, present.owner)
            return self._sealed(present.model_copy(update=changed), secret)

        record = await self._registry.update(name, change)
        kinds = [kind for kind, value in (("outbound", request.token), ("inbound", token)) if value is not None]
        self._audit.record("rotate", name, by, tokens=" and ".join(kinds))
        await self._pool.refresh()
        return Rotated(client=record.public(), token=token)

    async def revoke(self, name: str, by: str) -> None:
        """Remove a client with its secret and its scores. That it was distrusted is remembered.

        Raises:
            NotFound: no such client.
        """
        with suppress(Conflict):  # a record that cannot be read is removed as well
            await self._former.note(await self._registry.get(name))
        await self._registry.remove(name)
        self._audit.record("revoke", name, by)
        await self._pool.refresh()
        metrics.remove_client(name)

    def _check_credentials(
        self, records: Collection[ClientRecord], *, outbound: SecretStr, page_token_sha256: str | None = None
    ) -> None:
        """Check that a client's new credentials are nobody else's, so that a token has one holder and one scope.

        Raises:
            Conflict: one is taken. The message does not reveal by whom.
        """
        sent = hash_token(outbound.get_secret_value())
        taken = {record.inbound_sha256 for record in records}
        if page_token_sha256 is not None and (page_token_sha256 in taken or self._opens_router(page_token_sha256)):
            raise Conflict("page_token_sha256 is the hash of a token that is in use; create a new page token")
        if sent in taken or sent == page_token_sha256 or self._opens_router(sent):
            raise Conflict(
                "token, which the router sends to the reward service, opens a service of MoR as well; "
                "give the reward service a token of its own"
            )

    def _opens_router(self, digest: str) -> bool:
        own = self._service_token.get_secret_value()
        return self._tokens.holder(digest) is not None or (own != "" and hash_token(own) == digest)

    async def _probe(self, record: ClientRecord, egress: EgressPolicy | None = None) -> tuple[Card, str]:
        """Read the card and have the probe item scored; return the card and the outcome in words.

        Raises:
            Invalid: the endpoint failed.
        """
        client = self._pool.connect(record, egress)
        try:
            card = await client.card(_CARD_TIMEOUT_S)
            answer = (await client.score([PROBE_ITEM], PROBE_IMAGES, _PROBE_TIMEOUT_S))[PROBE_ITEM.item_id]
        except ClientFailure as failure:
            raise Invalid(f"client {record.name!r} at {record.url}: {failure}") from failure
        finally:
            await client.close()
            if record.name not in self._pool.records:  # whoever enrols chooses the name, and must not fill the metrics
                metrics.remove_client(record.name)
        if answer.status not in ("ok", "unscorable"):
            raise Invalid(
                f"client {record.name!r} at {record.url} failed a probe of two responses: "
                f"{answer.status}, {answer.detail}"
            )
        scores = " and ".join(f"{score:.4g}" for score in answer.scores or ())
        return (
            card,
            f"{answer.status}, a test picture scores {scores} (any size will do)"
            if scores
            else f"{answer.status}: {answer.detail}",
        )
