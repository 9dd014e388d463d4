"""A result has a model card with the facts of its run, in which no text from outside is anything but text."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from mor_core.printable import visible
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.results.model_card import CardFacts, model_card
from redis.asyncio import Redis

from tests.trainer.control import Worker, claim, create, eventually
from tests.trainer.kit import bearer, make_spec, running

NASTY = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(
    ["---\nlicense: mit\n---", "a | b", "<script>", "[a](http://b.c)", "`x`", "# h", "![p](q)", "\x1b[2J", "www.a.org"]
)


def parsed(card: str) -> tuple[dict[str, Any], list[str], str]:
    """Return a card's metadata, the cells of its first table, and the kinds of Markdown in it."""
    _, metadata, body = card.split("---\n", 2)
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    end = next(index for index, token in enumerate(tokens) if token.type == "table_close")
    cells = [token for token in tokens[:end] if token.type == "inline" and token.level > 3]
    kinds = {child.type for token in tokens for child in token.children or ()} | {token.type for token in tokens}
    shown = ["".join(child.content for child in cell.children or ()) for cell in cells]
    return yaml.safe_load(metadata), shown, " ".join(sorted(kinds))


@profile(max_examples=150, deadline=None)
@given(NASTY, NASTY, NASTY)
def test_texts_from_outside_are_shown_and_change_nothing(objective: str, client: str, model: str) -> None:
    plain = model_card(_facts("kind", "alpha", "m"))
    card = model_card(_facts(objective, client, model or "m"))
    wanted, found = parsed(plain), parsed(card)
    assert {**found[0], "base_model": None} == {**wanted[0], "base_model": None}
    assert len(found[1]) == len(wanted[1]) and found[2] == wanted[2]
    assert found[1][found[1].index("objective") + 1] == visible(" ".join(objective.split()))


def _facts(objective: str, client: str, model: str) -> CardFacts:
    spec = RunSpec(name="tiny", model=model, prompts="p", objective=objective)
    return CardFacts(spec, 4, run="tiny-1", kl=0.5, clients=1, client_weights={client: 0.25})


def test_a_hub_name_is_the_base_model_and_a_path_stays_private() -> None:
    spec = RunSpec(name="tiny", model="owner/name", prompts="p", license="apache-2.0")
    metadata, _, _ = parsed(model_card(CardFacts(spec, 4, adapter=True)))
    assert metadata == {
        "base_model": "owner/name", "library_name": "peft", "license": "apache-2.0",
        "pipeline_tag": "image-text-to-text", "tags": ["mor", "reinforcement-learning", "grpo"],
    }  # fmt: skip
    card = model_card(CardFacts(spec.model_copy(update={"model": "/secret/place/base", "license": None}), 4))
    assert "/secret" not in card and "license: unknown" in card and "| base model | base |" in card


@pytest.mark.anyio
@pytest.mark.parametrize("disclosed", ["number", "names"])
async def test_a_finished_run_has_a_card_with_its_figures(
    settings: ControlSettings, redis: Redis, tiny: Path, prompts: Path, disclosed: str
) -> None:
    app = create_app(settings.model_copy(update={"card_clients": disclosed}))
    async with running(app) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, make_spec(tiny, prompts, steps=2, license="cc-by-4.0"))
        attempt = (await claim(http))["attempt"]
        worker = Worker(redis, run, attempt)
        await worker.report("state", 0, {"from_step": 0})
        for step in (1, 2):
            clients = {"alpha": {"reward_mean": 1.0, "weight": 0.75}, "beta": {"weight": 0.25}}
            data = {"reward_mean": 0.5, "kl": step / 8, "clients": clients, "gate_version": step}
            await worker.report("step", step, data)
        for step, reward in ((0, 0.5), (2, 0.625)):
            data = {"step": step, "reward": reward, "prompts": 1, "answered": 1, "gate_version": 2}
            await worker.report("evaluation", step, data)
        await eventually(http, f"/v1/runs/{run}/metrics", lambda found: len(found["evaluations"]) == 2)
        final = settings.runs_dir / run / "final"
        final.mkdir(parents=True)
        (final / "README.md").write_text("of the worker")
        beat = {"attempt": attempt, "state": "finished", "final": str(final)}
        (await http.post(f"/v1/runs/{run}/heartbeat", json=beat, headers=bearer("service"))).raise_for_status()
        card = (final / "README.md").read_text()
    metadata, cells, _ = parsed(card)
    facts = dict(zip(cells[::2], cells[1::2], strict=True))
    assert metadata["license"] == facts["licence"] == "cc-by-4.0"
    assert facts["KL to the base model at the end, nats a token"] == "0.25"
    assert (facts["gate versions"], facts["clients"], facts["steps"][:6]) == ("1, 2", "2", "2 of 2")
    assert "| 0 | 0.5 | 2 |" in card and "| 2 | 0.625 | 2 |" in card
    assert ("| alpha | 0.75 |" in card) == (disclosed == "names") == ("beta" in card)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((final / "README.md").stat().st_mode) == 0o666 & ~umask
