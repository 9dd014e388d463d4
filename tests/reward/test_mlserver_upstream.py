"""A real MLServer, in an environment of its own, as upstream: ``MOR_TEST_MLSERVER`` names its command."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from tests.reward.test_upstreams import RESPONSES, SCORES, ask, item, scoring
from tests.reward.upstream_conformance import TEXTS_ALONE, clauses_not_kept
from tests.reward.upstream_process import running

MLSERVER = os.environ.get("MOR_TEST_MLSERVER", "")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not MLSERVER, reason="no MLServer: 'make test-upstreams' installs it"),
]
RUNTIME = """
import re
import numpy
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceResponse


def number(text):
    found = re.findall(r"-?\\d+(?:\\.\\d+)?", text)
    return float(found[-1]) if found else 0.0


class LastNumber(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        texts = StringCodec.decode_input(payload.inputs[0])
        scores = numpy.array([[9.0, number(text)] for text in texts], dtype="float32")
        outputs = [NumpyCodec.encode_output("logits", scores)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)
"""
PROTOCOL: dict[str, Any] = {"model": "rm", "label": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlserver")
    (folder / "last_number.py").write_text(RUNTIME)
    (folder / "model-settings.json").write_text(
        json.dumps({"name": "rm", "implementation": "last_number.LastNumber", "parameters": {"version": "v7"}})
    )
    port, others = free_port(), [free_port() for _ in range(2)]
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": others[0], "metrics_port": others[1]}
    (folder / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0}))
    url = f"http://127.0.0.1:{port}"
    with running([MLSERVER, "start", str(folder)], f"{url}/v2/models/rm/ready", folder / "log", starts_s=120):
        yield url


async def test_scores_are_a_column_of_the_output(server: str) -> None:
    async with scoring(server, {"protocol": "kserve", **PROTOCOL}) as queue:
        (outcome,) = await ask(queue, item(RESPONSES))
        assert outcome.scores == pytest.approx(SCORES), outcome.detail


async def test_every_clause_of_the_contract_is_kept(server: str, tokens_file: Path) -> None:
    assert await clauses_not_kept(server, tokens_file, "kserve", PROTOCOL) == TEXTS_ALONE
