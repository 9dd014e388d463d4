"""Responses a second of a text classifier: ``mor-reward serve``, and vLLM's ``/classify`` on the same checkpoint.

Both have all cores, in turns; each response is a new text. The classifier has MiniLM's size and random weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch
from mor_core.auth import hash_token, new_token
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from tests.ports import free_port
from tests.reward.test_adoption import TEMPLATE
from tests.reward.upstream_process import running
from tests.tiny_models import build_tokenizer

GROUPS, RESPONSES, WORDS = 8, 8, 48
"""Groups of a request, responses of a group, and words of a response."""
CALLERS = 2
"""Requests in flight."""
_CALLS, _ROUNDS = 6, 5
"""Calls of a caller in a round, and rounds."""
_STARTS_S = 300.0
_BIN = Path(sys.executable).parent
_VOCABULARY = 4096

Request = tuple[str, dict[str, Any]]
"""Route and body."""


def measure() -> dict[str, Any]:
    """Measure both in turns; a ratio over 1: the reward service scores more responses."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="mor-classifier-") as name:
        checkpoint = _write(Path(name) / "checkpoint")
        with _service(Path(name), checkpoint, cores) as ours, _vllm(Path(name), checkpoint, cores) as theirs:
            sides = {"mor-reward serve": (ours, _score), "vLLM /classify": (theirs, _classify(checkpoint))}
            rates: dict[str, list[float]] = {title: [] for title in sides}
            for number in range(_ROUNDS + 1):
                for title, (http, request) in sides.items():
                    rate = _rate(http, request, number)
                    if number:  # the first opens connections and compiles
                        rates[title].append(rate)
    ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
    return {
        "groups": GROUPS,
        "responses": RESPONSES,
        "words": WORDS,
        "callers": CALLERS,
        "threads": cores,
        "responses_per_second": {title: statistics.median(found) for title, found in rates.items()},
        "ratio": statistics.quantiles(ratios, n=4),
    }


def _write(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["<s>", "</s>", "<pad>"], "</s>", "<pad>", "<s>")
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=max(_VOCABULARY, len(tokenizer)),
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def _service(folder: Path, checkpoint: Path, threads: int) -> Iterator[httpx.Client]:
    token, model, port = new_token(), folder / "model", free_port()
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps([{"name": "bench", "scope": "service", "sha256": hash_token(token)}]))
    subprocess.run([str(_BIN / "mor-reward"), "adopt", str(checkpoint), "--out", str(model)], check=True)
    command = [str(_BIN / "mor-reward"), "serve", "--model", str(model), "--tokens-file", str(tokens)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--threads", str(threads)]
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {token}"}
    with (
        running(command, f"{url}/readyz", folder / "service.log", starts_s=_STARTS_S),
        httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as http,
    ):
        yield http


@contextlib.contextmanager
def _vllm(folder: Path, checkpoint: Path, threads: int) -> Iterator[httpx.Client]:
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += f"--host 127.0.0.1 --port {port} --runner pooling --dtype float32 --max-model-len 512".split()
    command += ["--served-model-name", "rm"]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    url = f"http://127.0.0.1:{port}"
    log = folder / "vllm.log"
    with (
        running(command, f"{url}/health", log, starts_s=_STARTS_S, environment=environment),
        httpx.Client(base_url=url, timeout=120, trust_env=False) as http,
    ):
        yield http


def _rate(http: httpx.Client, request: Callable[[list[list[str]]], Request], number: int) -> float:
    """Return the responses a second of a round."""

    def calls(caller: int) -> None:
        for call in range(_CALLS):
            texts = [
                [_text(f"{number} {caller} {call} {group} {r}") for r in range(RESPONSES)] for group in range(GROUPS)
            ]
            route, body = request(texts)
            http.post(route, json=body).raise_for_status()

    begun = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(calls, range(CALLERS)))
    return CALLERS * _CALLS * GROUPS * RESPONSES / (time.perf_counter() - begun)


def _text(salt: str) -> str:
    words = f"the answer {salt} is that bars and lines of this chart rise ".split()
    return " ".join(words[place % len(words)] for place in range(WORDS))


def _score(texts: list[list[str]]) -> Request:
    items = [
        {
            "item_id": str(place),
            "messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}]}],
            "responses": responses,
        }
        for place, responses in enumerate(texts)
    ]
    return "/v1/score", {"contract": "mor.reward/1", "items": items}


def _classify(checkpoint: Path) -> Callable[[list[list[str]]], Request]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def request(texts: list[list[str]]) -> Request:
        turns = [
            [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": response}]
            for responses in texts
            for response in responses
        ]
        filled = [tokenizer.apply_chat_template(turn, tokenize=False) for turn in turns]
        return "/classify", {"model": "rm", "input": filled, "add_special_tokens": False}

    return request
