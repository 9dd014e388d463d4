"""A real vLLM server as upstream of a reward service: scores as in transformers, and every clause of the contract."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForSequenceClassification

from tests.ports import free_port
from tests.reward.test_adoption import RESPONSES, examples, reference, write_decoder
from tests.reward.test_upstreams import ask, scoring
from tests.reward.upstream_conformance import TEXTS_ALONE, clauses_not_kept
from tests.reward.upstream_process import running

pytestmark = [pytest.mark.anyio, pytest.mark.vllm]

_STARTS_S = 300.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("classifier") / "ckpt", padded=True)


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the classifier by vLLM and return its address."""
    port = free_port()
    log = tmp_path_factory.mktemp("vllm") / "log"
    options = f"--host 127.0.0.1 --port {port} --runner pooling --dtype float32 --max-model-len 256 --enforce-eager"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command += ["--served-model-name", "rm", *options.split()]
    with running(command, f"{url}/health", log, starts_s=_STARTS_S, environment=environment):
        yield url


@pytest.mark.parametrize(("protocol", "template"), [({"model": "rm"}, True), ({"model": "rm", "chat": True}, False)])
async def test_scores_are_the_logits_of_the_classifier(
    server: str, checkpoint: Path, protocol: dict[str, Any], template: bool
) -> None:
    """Texts in the classifier's own template, filled in here or by vLLM."""
    wanted = reference(LlamaForSequenceClassification.from_pretrained(checkpoint), tokenizer_of(checkpoint))
    given = {"template": str(checkpoint)} if template else {}
    async with scoring(server, {"protocol": "classify", **protocol}, **given) as queue:
        (outcome,) = await ask(queue, examples())
    assert outcome.scores == pytest.approx(wanted, abs=1e-3), outcome.detail


@pytest.mark.parametrize("protocol", ["score", "rerank"])
async def test_a_pair_of_prompt_and_response_scores_as_in_transformers(
    server: str, checkpoint: Path, protocol: str
) -> None:
    model, tokenizer = LlamaForSequenceClassification.from_pretrained(checkpoint).eval(), tokenizer_of(checkpoint)
    wanted = []
    for response in RESPONSES:
        with torch.inference_mode():
            wanted.append(model(**tokenizer("what is it?", response, return_tensors="pt")).logits.item())
    async with scoring(server, {"protocol": protocol, "model": "rm"}) as queue:
        (outcome,) = await ask(queue, examples())
    assert outcome.scores == pytest.approx(wanted, abs=1e-3), outcome.detail


@pytest.mark.parametrize("protocol", ["classify", "score", "rerank"])
async def test_every_clause_of_the_contract_is_kept(server: str, tokens_file: Path, protocol: str) -> None:
    assert await clauses_not_kept(server, tokens_file, protocol, {"model": "rm"}) == TEXTS_ALONE


def tokenizer_of(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint)
