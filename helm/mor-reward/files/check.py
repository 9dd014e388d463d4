"""What `helm test` asks of a reward service: its card, and the scores of a tiny group, by the contract mor.reward/1."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
from mor_core.wire import Card, ScoreRequest, ScoreResponse

_GROUP = {
    "item_id": "check",
    "messages": [{"role": "user", "content": "Name a colour."}],
    "responses": ["Red.", "Tree."],
}


def main(address: str, token_file: str) -> None:
    token = Path(token_file).read_text().strip()
    request = ScoreRequest.model_validate({"contract": "mor.reward/1", "items": [_GROUP]})
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {token}"}, timeout=60) as http:
        card = Card.model_validate_json(http.get("/v1/card").raise_for_status().content)
        answer = http.post("/v1/score", content=request.model_dump_json()).raise_for_status()
        refused = http.get("/v1/card", headers={"Authorization": "Bearer unknown"}).status_code
    item = ScoreResponse.model_validate_json(answer.content).items[0]
    if item.status == "error" or (item.scores is not None and len(item.scores) != 2):
        sys.exit(f"a group of two responses: {item.status}, {item.scores}, {item.detail}")
    if refused != 401:
        sys.exit(f"an unknown token is answered {refused}; 401 is wanted")
    print(f"{card.model.name} {card.model.version}: {item.status} {item.scores or item.detail}")


if __name__ == "__main__":
    main(*sys.argv[1:])
