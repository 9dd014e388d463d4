"""Privacy of the demonstration's reward models: ``python bench/privacy.py`` writes ``bench/results/privacy.json``.

``--clients`` and ``--epsilons`` limit the models; figures of others stay as they are. Data and models are kept in
``--state``, which may be the folder of a demonstration. ``--quick`` gives rougher figures in less time.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from machine import RESULTS, commit, record
from privacy import membership
from three_domains.stack import CLIENTS

_NAME = "privacy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, default=Path(".mor/privacy"), help="folder of data and models")
    parser.add_argument("--clients", nargs="+", choices=sorted(CLIENTS), default=sorted(CLIENTS))
    parser.add_argument("--epsilons", nargs="+", default=["none", "3"], help="ε of the models; none: without")
    parser.add_argument("--quick", action="store_true", help="rougher figures in less time")
    arguments = parser.parse_args()
    state = arguments.state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    shadows = membership.QUICK_SHADOWS if arguments.quick else membership.SHADOWS
    for client in arguments.clients:
        for name in arguments.epsilons:
            epsilon = None if name == "none" else float(name)
            started = time.monotonic()
            figures = membership.measure(state, client, epsilon, shadows)
            seconds = round(time.monotonic() - started)
            _save({**figures, "commit": commit(), "seconds": seconds}, client, membership.arm(epsilon))


def _save(figures: dict[str, Any], client: str, arm: str) -> None:
    """Put the figures of one model into the results and leave those of the others."""
    file = RESULTS / f"{_NAME}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    found = known.get("membership", {"clients": {}})
    found["clients"].setdefault(client, {})[arm] = figures
    others = {part: value for part, value in known.items() if part not in {"measured", "commit", "machine"}}
    record(_NAME, {**others, "membership": found})
    print(f"{client}, ε {arm}: in {file}", flush=True)


if __name__ == "__main__":
    main()
