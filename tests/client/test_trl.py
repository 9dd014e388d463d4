"""TRL's own ``GRPOTrainer`` trains on the mixture of a real router. Skipped where TRL is not installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from mor_client import Mor
from mor_client.training.trl import reward
from PIL import Image

from tests.router.endpoints import Endpoint, html
from tests.tiny_models import build_tiny_vlm

pytest.importorskip("trl", reason="TRL is not installed; install mor-client[trl]")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # TRL's and those of its libraries
    pytest.mark.timeout(900),  # a training, on a machine that may be busy
]

SIZE = 4


def test_grpo_trains_on_the_mixture(
    scorer: Mor, clinic: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "WANDB_DISABLED", "true")
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    clinic.score = lambda _, response: float(len(response))

    class BreakLater(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step == 2:
                clinic.broken = html

    folder = build_tiny_vlm(tmp_path / "model")
    data = {
        "prompt": [[{"role": "user", "content": f"What is shown in picture {n}?"}] for n in range(3)],
        "image": [Image.new("RGB", (32, 32), (80 * n, 0, 0)) for n in range(3)],
    }
    trainer = GRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(folder),
        processing_class=AutoProcessor.from_pretrained(folder),
        args=GRPOConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=SIZE,
            num_generations=SIZE,
            max_completion_length=6,
            max_steps=3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict(data),
        reward_funcs=[
            reward("experts", num_generations=SIZE),
            reward("experts", num_generations=SIZE, asynchronous=True, name="later"),
        ],
        callbacks=[BreakLater()],
    )
    trainer.train()
    logged = [line for line in trainer.state.log_history if "rewards/mor/mean" in line]
    assert len(logged) == 3
    for line in logged[:2]:
        assert line["rewards/mor/mean"] == pytest.approx(line["rewards/later/mean"], abs=1e-4)
    assert any(line["rewards/mor/std"] > 0 for line in logged[:2])
    assert logged[2]["grad_norm"] == 0, "a group without a reward moves nothing"
    groups = [item for call in clinic.calls for item in call["items"]]
    assert {len(item["responses"]) for item in groups} == {SIZE}
    assert all(part["type"] == "image_url" for item in groups for part in item["messages"][0]["content"][:1])
