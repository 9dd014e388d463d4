"""Ask the policy the questions of the test and print the share of right answers: ``grade.py DIR/test.jsonl``.

Addresses and token are those of the command ``mor``: set ``MOR_CONFIG``.
"""

from __future__ import annotations

import base64
import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from mor_client.config import read_settings

_AT_ONCE = 8
"""Chat completions at the same time: the rollout service's limit."""
_MAX_TOKENS = 16


def answer(service: httpx.Client, row: dict[str, Any], folder: Path) -> str:
    picture = base64.b64encode((folder / row["images"][0]).read_bytes()).decode()
    question = row["prompt"][0]["content"][1]
    content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}, question]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": _MAX_TOKENS}
    reply = service.post("/v1/chat/completions", json=body)
    if reply.is_error:
        raise SystemExit(f"error: {reply.request.url} answered {reply.status_code}: {reply.text[:500]}")
    return str(reply.json()["choices"][0]["message"]["content"]).strip()


def main(test: Path) -> None:
    settings = read_settings()
    rows = [json.loads(line) for line in test.read_text().splitlines()]
    headers = {"Authorization": f"Bearer {settings.bearer()}"}
    with (
        httpx.Client(base_url=str(settings.rollout_url), headers=headers, timeout=120, trust_env=False) as service,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        answers = list(pool.map(lambda row: answer(service, row, test.parent), rows))
    right = Counter(row["domain"] for row, given in zip(rows, answers, strict=True) if given == row["answer"])
    for domain, asked in sorted(Counter(row["domain"] for row in rows).items()):
        print(f"{domain}: {right[domain]} of {asked} right, {100 * right[domain] / asked:.1f} %")
    print(f"all: {100 * right.total() / len(rows):.1f} % right")
    print(f"frequent answers: {', '.join(f'{text!r} {count}' for text, count in Counter(answers).most_common(5))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
