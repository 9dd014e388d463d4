"""Privacy of the demonstration's reward models: ``python bench/privacy.py [PART ...]`` writes ``results/privacy.json``.

Parts are the modules of ``bench/privacy``; a part that is not named keeps its earlier figures. Data and models stay in
``--state``, so that a part which needs only them takes minutes. ``--quick`` gives rougher figures in less time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path

from machine import RESULTS, commit, record

PARTS = ("membership",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="parts to measure; all by default")
    parser.add_argument("--state", type=Path, default=Path(".mor/privacy"), help="folder of data and models")
    parser.add_argument("--quick", action="store_true", help="rougher figures in less time")
    arguments = parser.parse_args()
    arguments.state.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts or PARTS:
        started = time.monotonic()
        found = importlib.import_module(f"privacy.{part}").measure(arguments.state.resolve(), arguments.quick)
        file = RESULTS / "privacy.json"
        before = json.loads(file.read_text()) if file.exists() else {}
        kept = {name: before[name] for name in PARTS if name in before}
        when = {"measured": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit()}
        seconds = round(time.monotonic() - started)
        record("privacy", {**kept, part: {**when, "quick": arguments.quick, "seconds": seconds, **found}})
        print(f"{part}: {seconds} s, in {file}")


if __name__ == "__main__":
    main()
