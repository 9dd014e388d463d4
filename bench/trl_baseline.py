"""TRL as the baseline of a measurement: pinned, in its own environment, configured for the same work."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import peer_environment
import vlm

TRL = "1.16.0"


def environment(state: Path) -> Path:
    """Create an environment with TRL below ``state`` that inherits this one; return its Python."""
    constraints = Path(__file__).parent.parent / "constraints-cpu.txt"
    return peer_environment.create(state / f"trl-{TRL}", ["-c", str(constraints), f"trl=={TRL}"])


def model_of(options: argparse.Namespace) -> tuple[Any, Any]:
    """Load model and processor, with the same trained parameters as MoR's."""
    from mor_trainer.model import loading

    model, processor = loading.load(options.model)
    loading.tune(model, vlm.spec_of().tuning, freeze_vision=True)
    return model, processor


def config(options: argparse.Namespace, steps: int, device: str = "cpu", **changes: Any) -> Any:
    """Make a ``GRPOConfig``: one group at a time, ``options.groups`` per step, as in MoR's run specification."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(options.state / "trl-output"),
        per_device_train_batch_size=options.size,
        gradient_accumulation_steps=options.groups,
        steps_per_generation=options.groups,
        num_generations=options.size,
        max_completion_length=options.response,
        max_steps=steps,
        beta=vlm.spec_of().algorithm.kl.beta,
        loss_type="grpo",
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **changes,
    )
