"""Privacy of the demonstration's reward models: ``python bench/privacy.py`` writes ``bench/results/privacy.json``.

Parts: ``membership`` (attacks on each client's model, with and without differential privacy), ``accuracy`` (held-out
accuracy over ε), ``copying`` (copies of a model by groups asked and form of answers) and ``answers`` (cost of limited
answers for the mixture). Figures of parts, clients and ε that are not named stay as they are. ``--quick`` gives rougher
figures in less time. Data and models are kept in ``--state``: it may be the folder of a demonstration without ``DP``.
"""

from __future__ import annotations

import argparse
import json
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import RESULTS, commit, record
from privacy import accuracy, answers, copying, membership, plots
from tables.privacy import NO_PRIVACY
from three_domains import prepare
from three_domains.stack import CLIENTS

Figures = dict[str, Any]


def _membership(arguments: Namespace, known: Figures) -> None:
    clients = known.setdefault("clients", {})
    shadows = membership.QUICK_SHADOWS if arguments.quick else membership.SHADOWS
    for client in arguments.clients:
        for name in arguments.epsilons:
            epsilon = None if name == NO_PRIVACY else float(name)
            begun = time.monotonic()
            found = membership.measure(arguments.state, client, epsilon, shadows)
            clients.setdefault(client, {})[membership.arm(epsilon)] = {**found, **_stamp(begun)}
            _save("membership", known)
    plots.draw(known, RESULTS / "privacy.svg")


def _accuracy(arguments: Namespace, known: Figures) -> None:
    begun = time.monotonic()
    _save("accuracy", {**accuracy.measure(arguments.state, arguments.quick), **_stamp(begun)})


def _copying(arguments: Namespace, known: Figures) -> None:
    clients = known.setdefault("clients", {})
    for client in [name for name in arguments.clients if name in copying.CLIENTS]:
        begun = time.monotonic()
        membership.train(arguments.state, client, None)
        found = copying.measure(arguments.state, client, copying.SIZES[_size(arguments)])
        clients[client] = {"size": _size(arguments), **found, **_stamp(begun)}
        _save("copying", known)


def _answers(arguments: Namespace, known: Figures) -> None:
    begun = time.monotonic()
    for client in arguments.clients:
        for epsilon in (None, answers.EPSILON):
            membership.train(arguments.state, client, epsilon)
    found = answers.measure(arguments.state, arguments.clients, answers.SIZES[_size(arguments)])
    _save("answers", {"size": _size(arguments), **found, **_stamp(begun)})


PARTS: dict[str, Callable[[Namespace, Figures], None]] = {
    "membership": _membership,
    "accuracy": _accuracy,
    "copying": _copying,
    "answers": _answers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=Path(".mor/privacy"), help="folder of data and models")
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--clients", nargs="+", choices=sorted(CLIENTS), default=sorted(CLIENTS))
    parser.add_argument("--epsilons", nargs="+", default=[NO_PRIVACY, "3"], help="ε; none: no privacy")
    parser.add_argument("--quick", action="store_true", help="rougher figures in less time")
    arguments = parser.parse_args()
    arguments.state = arguments.state.resolve()
    arguments.state.mkdir(parents=True, exist_ok=True)
    try:
        prepare.claim(arguments.state, membership.PRESET, membership.SEED)
    except prepare.StepFailed as error:
        parser.error(str(error))
    for part in arguments.parts:
        PARTS[part](arguments, _results().get(part, {}))


def _size(arguments: Namespace) -> str:
    return "quick" if arguments.quick else "full"


def _stamp(begun: float) -> Figures:
    return {"commit": commit(), "seconds": round(time.monotonic() - begun)}


def _results() -> Figures:
    """Return the parts that are measured."""
    file = RESULTS / "privacy.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    return {part: known[part] for part in PARTS if part in known}


def _save(part: str, figures: Figures) -> None:
    """Put the figures of one part into the results and leave the others."""
    print(f"{part}: in {record('privacy', {**_results(), part: figures})}", flush=True)


if __name__ == "__main__":
    main()
