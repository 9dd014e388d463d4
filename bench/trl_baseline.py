"""TRL as the baseline of a measurement: pinned, in its own environment, configured for the same work."""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import vlm

TRL = "1.16.0"


def environment(state: Path) -> Path:
    """Create an environment with TRL below ``state`` that inherits this one; return its Python."""
    folder = state / f"trl-{TRL}"
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        parent = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (folder / "lib" / version / "site-packages" / "parent.pth").write_text(parent)
        constraints = Path(__file__).parent.parent / "constraints-cpu.txt"
        command = [python, "-m", "pip", "install", "-q", "-c", constraints, f"trl=={TRL}"]
        subprocess.run([str(part) for part in command], check=True, timeout=900)
        ready.touch()
    return python


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
