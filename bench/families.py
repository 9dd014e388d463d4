"""Trial of each model family by the real loading paths, for the matrix in ``docs/model-families.md``.

``python bench/families.py`` builds a tiny random checkpoint of each family with its real processor class, tries it in
trainer, ``transformers`` engine and reward model, and writes ``bench/results/families.json``. ``--vllm`` tries vLLM
too, about a minute a family, ``--only`` some families and ``--parts`` some columns; what is not tried keeps its earlier
result.
``python bench/families.py --table`` writes the table of the page from the results.

A figure is the largest difference from plain passes of the family's own code: of log-probabilities in nats, of scores,
and of gradients relative. A text is the error that a user would see.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, end_children_on_sigterm, record
from mor_core.errors import MorError
from mor_rollout import environment
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.self_test import self_test
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from structlog.testing import capture_logs

from tests import family_checks as checks
from tests import latest_model_families, more_model_families
from tests.float64 import all_in_float64
from tests.model_families import FAMILIES, build_family

PAGE = Path(__file__).parent.parent / "docs" / "model-families.md"
COLUMNS = {
    "trainer": "Trainer",
    "tower": "Tower trained",
    "lora": "LoRA",
    "shared": "Prompts shared",
    "transformers": "`transformers` engine",
    "vllm": "vLLM",
    "reward": "Reward model",
}
PARTS = {"tower", "lora", "trainer", "transformers", "vllm", "reward"}
"""Columns that are tried; ``shared`` comes with the trainer."""
_ROUNDING = 1e-4
"""Largest difference that float32 rounding explains, nats or relative."""
_FLOAT32 = ("ernie4_5_vl_moe",)
"""Families with tensors of float32 whatever the model's type."""
_LIMITS = {
    "vllm_adapters": ("no adapters", "MOR_LORA_MAX_RANK=0", {"lora_max_rank": 0}),
    "vllm_pictures": ("one picture", "MOR_MAX_IMAGES=1", {"max_images": 1}),
}
"""Limits under which vLLM serves a family after all, by the figure that has the refusal: the table's words, the cure
that the refusal names, and settings."""
Figure = float | str | bool


def tried(attempt: Callable[[], Figure]) -> Figure:
    """Return the figure, or the error as its user would read it."""
    try:
        return attempt()
    except MorError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"


def prompts() -> list[checks.Sample]:
    """Prompts with one picture, two of other sizes, none, and one of another size."""
    return [checks.sample(1), checks.sample(2, 1), checks.sample(0, 2), checks.sample(1, 1)]


def accepted(checkpoint: Path) -> list[checks.Sample]:
    """Return the prompts that the family's processor takes: PaliGemma's wants a picture."""
    processor = checks.load_processor(str(checkpoint))
    taken = []
    for prompt in prompts():
        try:
            checks.encode_prompt(processor, prompt.messages, prompt.decoded)
        except MorError:
            continue
        taken.append(prompt)
    return taken


def measure(family: str, folder: Path, parts: Collection[str]) -> dict[str, Figure]:
    """Try a family in some parts of the system."""
    checkpoint = build_family(family, folder / family)
    dtype = torch.float32 if family in _FLOAT32 else torch.float64
    samples = accepted(checkpoint) if isinstance(tried(lambda: len(accepted(checkpoint))), int) else prompts()
    figures: dict[str, Figure] = {"pictures": ", ".join(str(len(sample.images)) for sample in samples)}

    def trainer(**changes: Any) -> float:
        with all_in_float64() if dtype == torch.float64 else contextlib.nullcontext():
            with capture_logs() as logs:
                policy = checks.policy_of(checkpoint, dtype, **changes)
            reasons = [line["reason"] for line in logs if line["event"].startswith("prompts are not shared")]
            figures["shared"] = policy.shares_prompts or reasons[0]
            return max(checks.gradient_difference(policy, checks.PlainModel(checkpoint, dtype), samples))

    def engine(backend: str, **limits: Any) -> float:
        async def sample() -> float:
            settings = checks.engine_settings(checkpoint, folder, backend=backend, **({"lora_max_rank": 8} | limits))
            environment.prepare(settings)
            base = BaseCheckpoint(settings.model)
            codec = PromptCodec(settings, base)
            if backend == "vllm":
                from mor_rollout.engines.vllm.vllm_engine import VllmEngine

                started: Any = VllmEngine(settings, base, codec)
            else:
                started = checks.TransformersEngine(settings, base, codec)
            try:
                await started.start()
                await self_test(settings, started)
                taken = [prompt for prompt in samples if len(prompt.images) <= settings.max_images]
                return await checks.engine_difference(started, checks.PlainModel(checkpoint, torch.float32), taken)
            finally:
                await started.close()

        return asyncio.run(sample())

    def vllm() -> float:
        limits: dict[str, Any] = {}
        while True:
            try:
                return engine("vllm", **limits)
            except MorError as error:
                name = next((name for name in _LIMITS if _LIMITS[name][1] in str(error) and name not in figures), None)
                if name is None:
                    raise
                figures[name] = str(error)
                limits |= _LIMITS[name][2]

    def reward() -> float:
        plain = checks.PlainModel(checkpoint, torch.float32)
        models = [checks.reward_model(checkpoint, freeze_vision=frozen) for frozen in (True, False)]
        return max(checks.reward_difference(model, plain, samples) for model in models)

    attempts: dict[str, Callable[[], Figure]] = {
        "tower": lambda: trainer(freeze_vision=False),
        "lora": lambda: trainer(tuning={"kind": "lora", "rank": 4}),
        "trainer": trainer,
        "transformers": lambda: engine("transformers"),
        "vllm": vllm,
        "reward": reward,
    }
    return figures | {part: tried(attempts[part]) for part in attempts if part in parts}


def table(families: dict[str, dict[str, Figure]]) -> str:
    """Return the matrix in Markdown, and the errors that it counts."""
    notes: dict[str, int] = {}

    def cell(figure: Figure | None) -> str:
        if figure is None:
            return "not tried"
        if isinstance(figure, bool):
            return "yes" if figure else "no"
        if isinstance(figure, float):
            return "yes" if figure <= _ROUNDING else f"differs by {figure:.1g}"
        text = re.sub(r"/\S*/", "", figure).replace("|", "\\|")
        return f"no ({notes.setdefault(text, len(notes) + 1)})"

    lines = [f"| Family | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for family, figures in sorted(families.items()):
        cells = {column: cell(figures.get(column)) for column in COLUMNS}
        for name, (words, _, _) in _LIMITS.items():
            if name in figures:
                cells["vllm"] += f", {words} {cell(figures[name]).removeprefix('no ')}"
        lines.append(f"| {family} | {' | '.join(cells.values())} |")
    errors = [f"{number}. {text}" for text, number in notes.items()]
    return "\n".join([*lines, "", "Messages of what does not work:", "", *errors])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=sorted(FAMILIES), help="families to try; all by default")
    parser.add_argument("--vllm", action="store_true", help="try vLLM too")
    parser.add_argument("--parts", nargs="*", choices=sorted(PARTS), help="columns to fill; without vllm by default")
    parser.add_argument("--table", action="store_true", help="only write the table of the page")
    options = parser.parse_args()
    end_children_on_sigterm()
    file = RESULTS / "families.json"
    families: dict[str, dict[str, Figure]] = json.loads(file.read_text())["families"] if file.is_file() else {}
    if not options.table:
        torch.set_num_threads(1)
        parts = options.parts or PARTS - ({"vllm"} if not options.vllm else set())
        for family in options.only or FAMILIES:
            with tempfile.TemporaryDirectory() as folder:
                found = measure(family, Path(folder), parts)
            earlier = families.get(family, {}).items()
            kept = {name: figure for name, figure in earlier if name not in _LIMITS or "vllm" not in parts}
            families[family] = kept | found
            print(family, found, flush=True)
            record("families", {"families": families})
    before, marker, _ = PAGE.read_text().partition("<!-- table -->\n")
    PAGE.write_text(f"{before}{marker}\n{table(families)}\n")


if __name__ == "__main__":
    assert more_model_families and latest_model_families  # their imports add families
    main()
