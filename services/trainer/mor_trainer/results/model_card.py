"""Model card of a result: ``README.md`` with the metadata of the Hugging Face hub and the facts of the run.

Texts from outside, such as names and objectives, are escaped: they change neither the metadata nor the layout.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mor_core.evaluated_steps import EvaluatedStep
from mor_core.optimisation import LoraTuning
from mor_core.printable import visible
from mor_core.runs import RunSpec

from mor_trainer import __version__

CARD = "README.md"
_TEXT_CHARACTERS = 1000
"""Characters of a text from outside; an objective may have more."""
_NAMES = 200
"""Clients that are named; a card is read by people."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_PUNCTUATION = re.compile(r"[!-+./:-@\[-`{-~]")
"""ASCII punctuation, of which Markdown takes any with a backslash as text; "-", "," and the like begin nothing here."""
_LIBRARIES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class CardFacts:
    """Facts of a result; what is not known is left out of its card."""

    spec: RunSpec
    step: int
    """Steps that the model was trained for."""
    adapter: bool = False
    """True: the trained adapter alone."""
    run: str | None = None
    at: float | None = None
    """Unix time at which the model was reached, seconds."""
    kl: float | None = None
    """KL to the base model in the last step, nats a token."""
    reward: float | None = None
    """Mean fused reward of the last step, logits."""
    gate_versions: Sequence[int] = ()
    evaluations: Sequence[EvaluatedStep] = ()
    clients: int | None = None
    """Number of clients that took part."""
    client_weights: Mapping[str, float | None] = field(default_factory=dict)
    """Named clients with their shares in the mixture in the last step; empty where the card names none."""


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write the card into the folder of a model that nobody reads yet."""
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")


def model_card(facts: CardFacts) -> str:
    """Return the card of a result."""
    sections = [_metadata(facts), _introduction(facts), _table(("fact", "value"), _facts(facts))]
    if facts.evaluations:
        sections += ["## Evaluation", *_evaluation(facts.evaluations)]
    if facts.client_weights:
        named = list(facts.client_weights.items())[:_NAMES]
        sections += ["## Clients", "Shares in the mixture are those of the last step."]
        sections += [_table(("client", "share"), ((_text(name), _number(share)) for name, share in named))]
    return "\n\n".join([*sections, "## Use", _use(adapter=facts.adapter)]) + "\n"


def _metadata(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    tuned = isinstance(facts.spec.tuning, LoraTuning)
    data = ModelCardData(
        base_model=_hub_name(facts.spec.model),
        library_name="peft" if facts.adapter else "transformers",
        license=facts.spec.license or "unknown",
        pipeline_tag="image-text-to-text",
        tags=["mor", "reinforcement-learning", facts.spec.algorithm.loss.kind, *(["lora"] if tuned else [])],
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def base_name(model: str) -> str:
    """Return the name by which others know a base model: that of the hub, or of the folder without its place."""
    return _hub_name(model) or Path(model).name


def _hub_name(model: str) -> str | None:
    """Return the name on the hub; ``None`` for a folder, whose path is nobody else's concern."""
    return model if _HUB_NAME.fullmatch(model) and not Path(model).exists() else None


def _introduction(facts: CardFacts) -> str:
    kind = "Adapter of a vision-language model" if facts.adapter else "Vision-language model"
    lines = [
        f"# {_text(facts.run or facts.spec.name)}",
        f"{kind} that MoR aligned by reinforcement learning. The reward is a mixture of the reward models of several "
        "clients, whose preference data stayed with them.",
    ]
    if facts.spec.control_rewards == "shuffled":
        lines.append(
            "**A control run: its rewards were shuffled, so the model is not aligned to anything. Do not use it.**"
        )
    return "\n\n".join(lines)


def _facts(facts: CardFacts) -> Iterator[tuple[str, str]]:
    spec = facts.spec
    loss, kl = spec.algorithm.loss, spec.algorithm.kl
    yield "base model", _text(base_name(spec.model))
    yield "licence", _text(spec.license or "unknown")
    yield "objective", _objective(spec)
    yield "algorithm", f"{_text(loss.kind)}, advantages by {_text(spec.algorithm.advantage.kind)}"
    yield "KL penalty", f"{kl.beta:g}, estimator {kl.estimator}"
    yield "trained parameters", _trained(spec)
    yield (
        "steps",
        f"{facts.step} of {spec.steps}, each of {spec.groups_per_step} prompts with {spec.group_size} responses",
    )
    yield "sampling", f"temperature {spec.sampling.temperature:g}, at most {spec.sampling.max_tokens} tokens"
    yield "learning rate", f"{spec.optimiser.lr:g}, {_text(spec.optimiser.decay)}"
    if facts.kl is not None:
        yield "KL to the base model at the end, nats a token", _number(facts.kl)
    if facts.reward is not None:
        yield "mean reward of the last step, logits", _number(facts.reward)
    if facts.gate_versions:
        yield "gate versions", ", ".join(map(str, facts.gate_versions))
    if facts.clients is not None:
        yield "clients", str(facts.clients)
    if facts.at is not None:
        yield "date", datetime.fromtimestamp(facts.at, UTC).date().isoformat()
    yield "versions", ", ".join(f"{name} {number}" for name, number in _versions())


def _objective(spec: RunSpec) -> str:
    if spec.objective is None:
        return "none; all clients count the same"
    if isinstance(spec.objective, str):
        return _text(spec.objective)
    return ", ".join(f"{_text(name)} {share:g}" for name, share in spec.objective.items())


def _trained(spec: RunSpec) -> str:
    vision = "vision tower frozen" if spec.freeze_vision else "vision tower included"
    if isinstance(spec.tuning, LoraTuning):
        return f"adapters of rank {spec.tuning.rank}, alpha {spec.tuning.alpha:g}; {vision}"
    return f"all; {vision}"


def _evaluation(evaluations: Sequence[EvaluatedStep]) -> list[str]:
    rows = ((str(one.step), _number(one.reward), _number(one.gate_version)) for one in evaluations)
    return [
        "Mean fused rewards of greedy responses to prompts that were never trained on. Step 0 is the base model. "
        "Rewards of different gate versions are not comparable.",
        _table(("step", "reward, logits", "gate version"), rows),
    ]


def _use(*, adapter: bool) -> str:
    if adapter:
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForImageTextToText",
            "",
            'base = AutoModelForImageTextToText.from_pretrained("BASE MODEL")',
            'model = PeftModel.from_pretrained(base, "THIS FOLDER OR REPOSITORY")',
        ]
    else:
        lines = [
            "from transformers import AutoModelForImageTextToText, AutoProcessor",
            "",
            'processor = AutoProcessor.from_pretrained("THIS FOLDER OR REPOSITORY")',
            'model = AutoModelForImageTextToText.from_pretrained("THIS FOLDER OR REPOSITORY")',
        ]
    return "\n".join(["```python", *lines, "```"])


def _versions() -> Iterator[tuple[str, str]]:
    yield "MoR", __version__
    for name in _LIBRARIES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _text(given: str) -> str:
    """Return a text from outside as one line of Markdown that shows it and does nothing else."""
    line = visible(" ".join(given.split()))
    shown = line if len(line) <= _TEXT_CHARACTERS else f"{line[:_TEXT_CHARACTERS]}…"
    return _PUNCTUATION.sub(lambda found: html.escape(found[0]) if found[0] in "<>&" else f"\\{found[0]}", shown)
