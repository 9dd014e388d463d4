"""``mor objective propose``: unlabelled pairs are uploaded, and labels of the best ones are used in the next fit."""

from __future__ import annotations

from pathlib import Path

from mor_client.exit_codes import ExitCode

from tests.client.installation import Installation
from tests.router.endpoints import TOKEN, Endpoints
from tests.router.planted import jsonl, rows


def test_chosen_pairs_become_anchors(mor: Installation, endpoints: Endpoints, tmp_path: Path) -> None:
    secret, labelled, unlabelled = (tmp_path / name for name in ("secret", "anchors.jsonl", "pairs.jsonl"))
    secret.write_text(TOKEN)
    endpoint = endpoints.endpoint("lab")
    mor.ok("client", "enrol", "lab", "--url", endpoint.url, "--secret-file", str(secret))
    labelled.write_bytes(jsonl(rows(24)))
    unlabelled.write_bytes(jsonl(rows(90, start=700)))
    mor.ok("objective", "create", "chosen", "Answer what was asked.", "--audited-by", "people")
    mor.ok("objective", "anchors", "chosen", str(labelled))
    early = mor.mor("objective", "propose", "chosen")
    assert (early.exit_code, "mor objective fit chosen" in early.stderr) == (ExitCode.conflict, True)
    first = mor.json("objective", "fit", "chosen")["report"]["pairs"]
    assert "mor objective candidates chosen FILE" in mor.mor("objective", "propose", "chosen").stderr
    counts = mor.json("objective", "candidates", "chosen", str(unlabelled))
    assert counts["kept"] + counts["held_back"] == 90 and counts["kept"] > 60
    shown = mor.ok("objective", "propose", "chosen", "--count", "3", "--dry-run").splitlines()
    assert shown[0].split() == ["question", "first", "second", "domain", "tells,", "nats", "split", "new"]
    assert len(shown) == 4
    assert mor.json("label", "next", "chosen") is None, "a dry run leaves the queue as it is"
    proposed = mor.json("objective", "propose", "chosen", "--count", "3")
    assert [pair["source"] for pair in proposed["pairs"]] == ["uploaded"] * 3
    for pair in proposed["pairs"]:
        question = mor.json("label", "next", "chosen")
        assert (question["audit"], question["first"]) == (pair["audit"], pair["first"])
        mor.ok("label", "give", "chosen", question["audit"], "first")
    assert mor.json("objective", "fit", "chosen")["report"]["pairs"] > first, "one more may be a honeypot now"
    assert mor.mor("objective", "propose", "chosen", "--count", "65").exit_code == ExitCode.usage
    mor.use("labeller")
    assert mor.mor("objective", "propose", "chosen").exit_code == ExitCode.not_allowed
    assert len(mor.json("objective", "propose", "chosen", "--count", "2", "--dry-run")["pairs"]) == 2
    mor.use("admin")
    mor.ok("objective", "delete", "chosen", "--yes")
    mor.ok("client", "remove", "lab", "--yes")
