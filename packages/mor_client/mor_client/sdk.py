"""The SDK's entry: everything that MoR's services offer, by noun."""

from __future__ import annotations

from types import TracebackType

from mor_client.clients import Clients
from mor_client.config import ClientSettings, read_settings
from mor_client.objectives import Objectives
from mor_client.runs import Alerts, Dead, Runs
from mor_client.transport import Transport


class Mor:
    """An installation of MoR. Without ``settings`` they come from the environment and the configuration file.

    Raises:
        Invalid: a setting is wrong.
    """

    def __init__(self, settings: ClientSettings | None = None) -> None:
        self.settings = settings if settings is not None else read_settings()
        self.control = Transport("control", self.settings.control_url, self.settings)
        self.router = Transport("router", self.settings.router_url, self.settings)
        self.rollout = Transport("rollout", self.settings.rollout_url, self.settings)
        self.runs = Runs(self.control)
        self.dead = Dead(self.control)
        self.alerts = Alerts(self.control)
        self.clients = Clients(self.router)
        self.objectives = Objectives(self.router, self.settings)

    def __enter__(self) -> Mor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for transport in (self.control, self.router, self.rollout):
            transport.close()
