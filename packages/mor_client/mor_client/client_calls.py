"""Calls of the router about clients: enrol, inspect, pause, rotate, remove."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mor_core.audits import ClientAudits
from mor_core.clients import Change, Client, ClientStatus, Enrolled, Enrolment, Influence, Rotated, Rotation

from mor_client.given_arguments import record
from mor_client.transport import Transport

_TRIAL_S = 60.0
"""Seconds to wait: the router reads the card and has a group scored before it responds."""


class ClientCalls:
    """Calls about the clients of a router."""

    def __init__(self, router: Transport) -> None:
        self._router = router

    def enrol(self, enrolment: Enrolment | Mapping[str, Any]) -> Enrolled:
        """Enrol a client. The result holds the token of the client's own page; it is not available again."""
        body = record("enrolment", enrolment, Enrolment).model_dump(mode="json")
        found: Enrolled = self._router.call("POST", "/v1/clients", Enrolled, json=body, timeout_s=_TRIAL_S)
        return found

    def list(self) -> list[Client]:
        """List all clients by name."""
        found: list[Client] = self._router.pages("/v1/clients", Client, "name")
        return found

    def get(self, name: str) -> ClientStatus:
        found: ClientStatus = self._router.get(f"/v1/clients/{name}", ClientStatus)
        return found

    def influence(self, name: str) -> Influence:
        """Get the effect of a client's scores on recent rewards."""
        found: Influence = self._router.get(f"/v1/clients/{name}/influence", Influence)
        return found

    def audits(self, name: str) -> ClientAudits:
        """Get what labelled audits of live groups say about a client."""
        found: ClientAudits = self._router.get(f"/v1/clients/{name}/audits", ClientAudits)
        return found

    def change(self, name: str, change: Change | Mapping[str, Any]) -> Client:
        """Pause, resume or move a client."""
        body = record("change", change, Change).model_dump(mode="json", exclude_unset=True)
        found: Client = self._router.call(
            "PATCH", f"/v1/clients/{name}", Client, json=body, timeout_s=_TRIAL_S, idempotent=True
        )
        return found

    def rotate(self, name: str, rotation: Rotation | Mapping[str, Any]) -> Rotated:
        """Replace credentials: the token that the router sends, the client's own, or both."""
        body = record("rotation", rotation, Rotation).model_dump(mode="json")
        found: Rotated = self._router.call("POST", f"/v1/clients/{name}/rotate", Rotated, json=body, timeout_s=_TRIAL_S)
        return found

    def remove(self, name: str) -> None:
        """Remove a client: it gets no more requests, its secret is deleted and its own token becomes invalid."""
        self._router.call("DELETE", f"/v1/clients/{name}", None)
