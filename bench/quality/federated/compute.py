"""Equal compute of all arms, and a ledger of what an arm spent and sent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

SERVER = "server"
"""Place of the server in a ledger; any other place is a client."""


class UnequalCompute(RuntimeError):
    """An arm spent other compute than its budget; its figures would not be comparable."""


@dataclass(frozen=True)
class Budget:
    """Compute of an arm.

    A client that trains takes ``steps`` gradient steps of ``batch`` preference pairs, in ``rounds`` equal parts. A
    server that trains passes as many responses through the gradient as all clients together pass pairs.
    """

    steps: int
    batch: int
    rounds: int

    def __post_init__(self) -> None:
        if self.steps % self.rounds:
            raise ValueError(f"{self.steps} steps do not divide into {self.rounds} rounds; give a multiple")

    @property
    def steps_of_a_round(self) -> int:
        return self.steps // self.rounds

    def of_server(self, clients: int) -> int:
        """Return the responses of the server's gradient steps."""
        return clients * self.steps * self.batch


@dataclass
class Ledger:
    """Gradient steps and rows by place, and bytes by direction."""

    steps: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    """Preference pairs, or responses of the server, that went through the gradient."""
    to_clients: int = 0
    from_clients: int = 0

    def stepped(self, place: str, rows: int) -> None:
        self.steps[place] += 1
        self.rows[place] += rows

    def sent(self, *, to_clients: int = 0, from_clients: int = 0) -> None:
        self.to_clients += to_clients
        self.from_clients += from_clients

    def check(self, budget: Budget, clients: list[str], *, local: bool, server: bool) -> None:
        """Check that the clients (``local``), the server or both spent their budget exactly, and others nothing.

        Raises:
            UnequalCompute: a place spent more or less.
        """
        wanted = dict.fromkeys(clients, budget.steps * budget.batch) if local else {}
        if server:
            wanted[SERVER] = budget.of_server(len(clients))
        if dict(self.rows) != wanted:
            raise UnequalCompute(f"rows through the gradient are {dict(self.rows)}, the budget is {wanted}")
        uneven = {client: self.steps[client] for client in wanted if client != SERVER} if local else {}
        if any(steps != budget.steps for steps in uneven.values()):
            raise UnequalCompute(f"gradient steps are {uneven}, the budget is {budget.steps} each")
