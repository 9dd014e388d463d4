"""Pairs of the policy's own answers: made from the groups that a client scored, labelled by a person, trained on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from mor_core.datafiles import read_preferences
from mor_core.errors import DataFileError, Invalid
from mor_reward.cli import app
from mor_reward.policy_pairs import write_pairs
from PIL import Image
from typer.testing import CliRunner

PICTURE = "a" * 64


def group(number: int, responses: list[str], **changes: Any) -> dict[str, Any]:
    """Return a sample group as a client's token shows it: without rewards and the scores of others."""
    return {
        "step": number, "group_id": f"g{number}", "prompt_id": f"q{number}", "domain": "charts",
        "prompt": f"user: How many bars\nare in chart {number}?", "images": [PICTURE], "weights_version": number,
        "gate_version": 1, "fusion": "weighted", "responses": responses, "rewards": None, "advantages": None,
        "clients": [], **changes,
    }  # fmt: skip


GROUPS = [
    group(1, ["two", "three", "tn", "tn"]),
    group(2, ["tn", "four bars", "tn", "tn"]),
    group(3, ["tn", "tn", "tn", "tn"]),
    group(4, ["yes", "no"], prompt="system: Be brief.\nuser: Is it red?", images=[]),
    group(5, ["a", "b"], prompt="user: one\nassistant: two\nuser: three"),
]


class RunControl:
    """HTTP server with samples and pictures of one run, for one token."""

    def __init__(self) -> None:
        content = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(content, "JPEG")
        answers = {
            "/v1/runs/r-1/samples": json.dumps({"run": "r-1", "samples": GROUPS, "new": 1}).encode(),
            f"/v1/runs/r-1/images/{PICTURE}": content.getvalue(),
        }
        asked = self.asked = list[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                asked.append(path)
                body = answers.get(path)
                status = 401 if self.headers["Authorization"] != "Bearer page" else 404 if body is None else 200
                self.send_response(status)
                self.send_header("Content-Length", str(len(body or b"") if status == 200 else 0))
                self.end_headers()
                self.wfile.write((body or b"") if status == 200 else b"")

            def log_message(self, *_: object) -> None:
                """Print nothing in tests."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def control() -> Iterator[RunControl]:
    control = RunControl()
    thread = Thread(target=control.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield control
    control.server.shutdown()
    control.server.server_close()
    thread.join(timeout=10)


def negatives(control: RunControl, folder: Path, *, run: str = "r-1", token: str = "page", out: str = "pairs.jsonl"):
    secret = folder / "page.token"
    secret.write_text(token)
    given = ["--control", control.url, "--run", run, "--page-token-file", str(secret), "--out", str(folder / out)]
    return CliRunner().invoke(app, ["negatives", *given])


def test_pairs_hold_what_the_policy_says_with_garbage_and_hedges(control: RunControl, tmp_path: Path) -> None:
    done = negatives(control, tmp_path)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    by_group = {row["id"].split("/")[0] for row in rows}
    assert by_group == {"g1", "g2", "g4"}, "a group with one response, or several turns, gives none"
    assert {row["id"].split("/")[1] for row in rows} == {"responses", "frequent", "hedge", "repetition"}
    assert all(row["response_1"] != row["response_2"] and row["preference_strength"] == 0 for row in rows)
    assert any("tn" in (row["response_1"], row["response_2"]) for row in rows if row["id"].startswith("g4")), (
        "the answer to every question is compared with answers to others, too"
    )
    assert {row.get("system") for row in rows if row["id"].startswith("g4")} == {"Be brief."}
    assert next(row["prompt"] for row in rows if row["id"].startswith("g1")) == "How many bars\nare in chart 1?"
    assert control.asked.count(f"/v1/runs/r-1/images/{PICTURE}") == 1


def test_labelled_pairs_are_preferences_and_unlabelled_ones_are_none(control: RunControl, tmp_path: Path) -> None:
    assert negatives(control, tmp_path).exit_code == 0
    file = tmp_path / "pairs.jsonl"
    with pytest.raises(DataFileError):
        read_preferences(file)  # nothing is labelled yet
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row, strength in zip(rows, (-1, 2), strict=False):
        row["preference_strength"] = strength
    file.write_text("\n".join(map(json.dumps, rows)))
    first, second = read_preferences(file)
    assert (first.chosen, first.rejected) == (rows[0]["response_1"], rows[0]["response_2"])
    assert (second.chosen, second.rejected) == (rows[1]["response_2"], rows[1]["response_1"])
    assert len(first.prompt.images) == 1


def test_what_is_wrong_is_named_with_its_cure(control: RunControl, tmp_path: Path) -> None:
    refused = negatives(control, tmp_path, token="another")
    assert refused.exit_code == 1
    assert "not that of this client's page" in refused.output
    unknown = negatives(control, tmp_path, run="r-2")
    assert "the platform team knows the run's id" in unknown.output
    assert "write to a .jsonl file" in negatives(control, tmp_path, out="pairs.csv").output
    assert list(tmp_path.glob("pairs*")) == [], "nothing is left behind"
    assert negatives(control, tmp_path).exit_code == 0
    assert "exists; choose another --out" in negatives(control, tmp_path).output


def test_an_address_that_is_none_is_named_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"--control http://a:b: .*; write it as http://host:port"):
        write_pairs("http://a:b", "t", "run", tmp_path / "pairs.jsonl")
