"""Measurement of image sizes: ``python bench/images.py`` writes ``bench/results/images.json``.

Images missing on this machine keep their figures, because those for GPUs hardly fit on one disk with the others.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import RESULTS, record

sys.path.append(str(Path(__file__).parent.parent))

from tests.containers.podman import Podman, missing
from tests.containers.release import FOR_GPUS, IMAGES


def measure(podman: Podman) -> dict[str, dict[str, Any]]:
    """Measure each local image: gigabytes unpacked, with its base, and the commit that it was built from."""
    found = {}
    for name, image in (IMAGES | FOR_GPUS).items():
        inspected = podman.image(image)
        if inspected is not None:
            revision = inspected["Config"]["Labels"]["org.opencontainers.image.revision"]
            found[name] = {"gb": round(inspected["Size"] / 1e9, 2), "commit": revision[:7]}
    return found


def main() -> None:
    if reason := missing():
        raise SystemExit(reason)
    kept = RESULTS / "images.json"
    before = json.loads(kept.read_text())["images"] if kept.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        print(record("images", {"images": before | measure(Podman(Path(folder)))}))


if __name__ == "__main__":
    main()
