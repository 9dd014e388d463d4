"""Create the objectives and runs that the values declare and that do not exist yet. Safe to run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service import Service


def objective(router: Service, wanted: dict[str, Any]) -> None:
    """Create an objective, or complete one without anchors or gate: an earlier job may have ended in between."""
    path = f"/v1/objectives/{wanted['name']}"
    known = router.call("GET", path, missing=None)
    if known is None:
        described = {key: value for key, value in wanted.items() if key not in ("anchors", "fit")}
        known = router.call("POST", "/v1/objectives", json=described)
        print(f"objective {wanted['name']}: created")
    if wanted.get("anchors") and not known["anchors"]:
        known = router.call("PUT", f"{path}/anchors", files=upload(Path(wanted["anchors"])))
        print(f"objective {wanted['name']}: {known['anchors']} anchors")
    if wanted.get("fit") and not known["active"]:
        gate = router.call("POST", f"{path}/fit")
        print(f"objective {wanted['name']}: gate version {gate['version']} is active")


def upload(anchors: Path) -> list[tuple[str, tuple[str, bytes]]]:
    """Return the form fields of a mor.prefs/1 file and of the pictures that it names by path."""
    lines = anchors.read_bytes()
    rows = [json.loads(line) for line in lines.splitlines() if line.strip()]
    names = {name for row in rows for name in row.get("images") or [] if not name.startswith("data:")}
    pictures = [("images", (name, (anchors.parent / name).read_bytes())) for name in sorted(names)]
    return [("anchors", (anchors.name, lines)), *pictures]


def main() -> None:
    wanted = json.loads((Path(__file__).parent / "wanted.json").read_text())
    if wanted["objectives"]:
        router = Service("router")
        for each in wanted["objectives"]:
            objective(router, each)
    if wanted["runs"]:
        control = Service("control")
        known = {run["name"] for run in control.runs()}
        for spec in wanted["runs"]:
            if spec["name"] not in known:
                print(f"run {control.call('POST', '/v1/runs', json=spec)['id']}: queued")


if __name__ == "__main__":
    main()
