"""Material of an arm: the clients' pairs, the server's prompts and anchors, and the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mor_core.datafiles import read_prompts
from three_domains.base_vlm import read_rows

from quality.federated.adapters import Adapter
from quality.federated.compute import Budget, Ledger
from quality.federated.local_training import Pair
from quality.federated.policy import Asked, Policy
from quality.federated.rewards import RewardPanel, ScoreBytes
from quality.group_scores import AnchorPairs
from quality.scoring import Group


@dataclass(frozen=True)
class ServerPrompt:
    """Question of the server, encoded for the policy and as the reward models read it."""

    asked: Asked
    group: Group
    """The question without responses."""


@dataclass(frozen=True)
class Federation:
    """Clients and server at the start of an arm."""

    policy: Policy
    pairs: Mapping[str, Sequence[Pair]]
    """Preference pairs by client, which never leave it."""
    prompts: Sequence[ServerPrompt]
    anchors: AnchorPairs
    anchor_groups: Sequence[Group]
    """The anchors' questions and responses, which the clients score before a fit."""
    label: Callable[[str, str], bool]
    """Truth of a response to the server's prompt with this id, for labels during the run."""
    panel: RewardPanel
    averaged_from: Sequence[str]
    """Clients whose reward models were averaged."""
    averaged_bytes: int
    """Bytes each way of a client whose reward model was averaged, in all rounds."""
    budget: Budget
    seed: int
    rate: float = 1.0
    """Factor of all learning rates."""
    ledger: Ledger = field(default_factory=Ledger)
    score_bytes: ScoreBytes = field(default_factory=ScoreBytes)


@dataclass(frozen=True)
class Trained:
    """Adapters that an arm made: one for all under the empty name, or one for each client."""

    adapters: Mapping[str, Adapter]

    def of(self, client: str) -> Adapter:
        return self.adapters[client] if client in self.adapters else self.adapters[""]

    @property
    def common(self) -> Adapter | None:
        return self.adapters.get("")


class FederatedArm(Protocol):
    """Way to train policies without sharing pairs."""

    title: str
    local: bool
    """Clients take gradient steps."""
    server: bool
    """The server takes gradient steps."""

    def train(self, federation: Federation) -> Trained: ...


def read_pairs(policy: Policy, folder: Path, domains: Sequence[str]) -> list[Pair]:
    """Encode the preference pairs of a folder that belong to some domains."""
    found = []
    for row in read_rows(folder / "prefs.jsonl"):
        if row["domain"] in domains:
            asked = policy.ask(folder, row)
            chosen, rejected = (policy.respond(asked, row[column]) for column in ("chosen", "rejected"))
            found.append(Pair(chosen, rejected, row["domain"]))
    return found


def read_server_prompts(policy: Policy, folder: Path, domains: Sequence[str]) -> list[ServerPrompt]:
    """Encode the prompts of a folder that belong to some domains."""
    file = folder / "prompts.jsonl"
    return [
        ServerPrompt(policy.ask(folder, row), Group(prompt, ()))
        for row, prompt in zip(read_rows(file), read_prompts(file), strict=True)
        if row["domain"] in domains
    ]
