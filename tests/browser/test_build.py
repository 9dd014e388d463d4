"""The committed build of the dashboard, and its delivery."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fastapi.testclient import TestClient
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings

TRAINER = Path(__file__).parents[2] / "services" / "trainer"
SOURCES = TRAINER / "dashboard"
BUILT = TRAINER / "mor_trainer" / "static"


def sources() -> dict[str, bytes]:
    named = [SOURCES / name for name in ("build.mjs", "package-lock.json", "tsconfig.json")]
    files = [*named, *(path for path in (SOURCES / "src").rglob("*") if path.is_file())]
    return {path.relative_to(SOURCES).as_posix(): path.read_bytes() for path in files}


def test_the_committed_build_is_of_the_committed_sources() -> None:
    digest = hashlib.sha256()
    for name, content in sorted(sources().items()):
        digest.update(f"{name}\0".encode() + content + b"\0")
    assert json.loads((BUILT / "build.json").read_text())["sources"] == digest.hexdigest(), "run `make dashboard`"


def test_the_sources_stay_small() -> None:
    for name, content in sources().items():
        generated = name in ("package-lock.json", "src/step_metrics.ts")
        assert generated or len(content.splitlines()) <= 400, name


def test_the_page_needs_no_token_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    app = create_app(ControlSettings(runs_dir=tmp_path))
    http = TestClient(app)
    page = http.get("/")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    for name in ("app.js", "style.css", "LICENSES.txt"):
        reply = http.get(f"/static/{name}")
        assert (reply.status_code, reply.headers["x-content-type-options"]) == (200, "nosniff")
        again = http.get(f"/static/{name}", headers={"If-None-Match": reply.headers["etag"]})
        assert again.status_code == 304
    assert http.get("/static/..%2Fapp.py").status_code == 404
