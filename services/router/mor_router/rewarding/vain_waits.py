"""Waits of groups for clients whose calls failed, from the answers to one batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mor_router.clients.reliability import ClientWait
from mor_router.clients.responses import ClientResponse


def vain_waits(
    answers: Mapping[str, Mapping[str, ClientResponse]],
    known: Mapping[str, Mapping[str, ClientResponse]],
    weighted: Mapping[str, Collection[str]],
    again: Collection[str],
    retry_s: float,
) -> dict[str, ClientWait]:
    """Return the wait for each client that failed for a group that another client scored.

    An error for one group counts where the client scored none. Where nobody scored a group, it does not show that a
    client is at fault. ``answers`` and ``known`` map items to clients; ``known`` are the answers of earlier attempts,
    for which nobody waited. ``weighted``: item -> clients with weight for it. ``again``: items that are tried again
    after ``retry_s``.
    """
    waits: dict[str, ClientWait] = {}
    scoring = {name for given in answers.values() for name, answer in given.items() if answer.scores is not None}
    for item, clients in weighted.items():
        given = {name: answer for name in clients if (answer := answers[item].get(name)) is not None}
        scored = [name for name, answer in given.items() if answer.scores is not None]
        if not scored:
            continue
        others_s = max((given[name].seconds or 0.0 for name in scored if name not in known.get(item, ())), default=0.0)
        for name, answer in given.items():
            if answer.status == "not_asked":  # a rule came meanwhile, which is no fault of the client
                continue
            failed = item in again and answer.may_change and name not in scoring
            if answer.of_call or failed:
                called_s = 0.0 if answer.status == "circuit_open" else answer.seconds or 0.0
                wait = ClientWait(max(0.0, called_s - others_s), retry_s if item in again else 0.0)
                before = waits.get(name, wait)
                waits[name] = ClientWait(max(before.past_s, wait.past_s), max(before.coming_s, wait.coming_s))
    return waits
