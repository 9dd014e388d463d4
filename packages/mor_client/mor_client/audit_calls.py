"""Calls of the router about audits of live groups: their number, the next one to label, labels, people who label."""

from __future__ import annotations

from mor_core.audits import AuditCounts, AuditLabel, AuditQuestion, PersonLabels, Preferred, WithdrawnLabels

from mor_client.given_arguments import arguments
from mor_client.transport import Transport


class AuditCalls:
    """Calls about the audited groups that people label."""

    def __init__(self, router: Transport) -> None:
        self._router = router

    def next(self, objective: str) -> AuditQuestion | None:
        """Get the oldest group that no other person is labelling, for 15 minutes; ``None`` where none waits."""
        found: AuditQuestion | None = self._router.get(f"/v1/objectives/{objective}/audits/next", AuditQuestion | None)
        return found

    def label(self, objective: str, audit: str, preferred: Preferred) -> None:
        """Label a group."""
        body = arguments(AuditLabel, preferred=preferred).model_dump(mode="json")
        self._router.call("POST", f"/v1/objectives/{objective}/audits/{audit}", None, json=body)

    def people(self) -> list[PersonLabels]:
        """List the people who have labelled groups, and how often another person answered differently."""
        found: list[PersonLabels] = self._router.get("/v1/audits/people", list[PersonLabels])
        return found

    def withdraw(self, person: str) -> WithdrawnLabels:
        """Remove all labels of a person, and the anchors made of them."""
        found: WithdrawnLabels = self._router.call(
            "DELETE", "/v1/audits/labels", WithdrawnLabels, params={"by": person}
        )
        return found

    def list(self) -> list[AuditCounts]:
        """Count the audited groups of each objective."""
        found: list[AuditCounts] = self._router.get("/v1/audits", list[AuditCounts])
        return found
