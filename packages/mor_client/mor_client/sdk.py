"""Entry of the SDK: calls of an installation's services, grouped by resource."""

from __future__ import annotations

from types import TracebackType

from mor_client.audit_calls import AuditCalls
from mor_client.client_calls import ClientCalls
from mor_client.config import ClientSettings, read_settings
from mor_client.objective_calls import ObjectiveCalls
from mor_client.rewards import RewardCalls
from mor_client.run_calls import AlertCalls, DeadLetterCalls, RunCalls
from mor_client.transport import Transport


class Mor:
    """Client of an installation of MoR. By default its settings come from the environment and the configuration file.

    Raises:
        Invalid: a setting is invalid.
    """

    def __init__(self, settings: ClientSettings | None = None) -> None:
        self.settings = settings if settings is not None else read_settings()
        self.control = Transport("control", self.settings.control_url, self.settings)
        self.router = Transport("router", self.settings.router_url, self.settings)
        self.rollout = Transport("rollout", self.settings.rollout_url, self.settings)
        self.runs = RunCalls(self.control)
        self.dead = DeadLetterCalls(self.control)
        self.alerts = AlertCalls(self.control)
        self.clients = ClientCalls(self.router)
        self.objectives = ObjectiveCalls(self.router, self.settings)
        self.audits = AuditCalls(self.router)
        self.rewards = RewardCalls(self.router, self.settings)

    def __enter__(self) -> Mor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.rewards.close()
        for transport in (self.control, self.router, self.rollout):
            transport.close()
