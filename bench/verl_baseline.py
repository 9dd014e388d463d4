"""verl as the baseline of a measurement: pinned, in its own environment, configured for the same work.

verl has platforms for GPUs and NPUs only. A platform for CPUs, and an engine on it, are registered by verl's own
interfaces for that; verl's code is unchanged. Only the peer's process imports verl.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peer_environment
import torch
import vlm
from PIL import Image

_VERL = "0.9.1"
_TRANSFORMERS = "5.10.4"
"""Newest that this verl admits, older than MoR's."""
VERSIONS = f"{_VERL} with transformers {_TRANSFORMERS}"
_SHARDING = "fsdp2"
"""``fsdp``, verl's other way, refuses a model in main memory."""


def environment(state: Path) -> Path:
    """Create an environment with verl below ``state`` that inherits this one; return its Python."""
    packages = [f"verl=={_VERL}", f"transformers=={_TRANSFORMERS}", "tensordict==0.10.0", f"torch=={torch.__version__}"]
    return peer_environment.create(state / f"verl-{_VERL}", packages)


class Trainer:
    """verl's workers for actor and reference in this process: one rank over gloo, without Ray."""

    def __init__(self, options: argparse.Namespace, steps: int) -> None:
        _register_cpu()
        from transformers import AutoProcessor
        from verl.workers.config import FSDPActorConfig
        from verl.workers.utils.losses import ppo_loss

        os.environ.update(WORLD_SIZE="1", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        self._options = options
        self._processor = AutoProcessor.from_pretrained(options.model)
        self._reference, self._actor = _worker(options, steps), _worker(options, steps)
        actor = FSDPActorConfig(
            strategy=_SHARDING,
            rollout_n=options.size,
            ppo_mini_batch_size=options.groups,
            ppo_micro_batch_size_per_gpu=options.size,
            loss_agg_mode="seq-mean-token-mean",
            use_kl_loss=True,
            kl_loss_coef=vlm.spec_of().algorithm.kl.beta,
            kl_loss_type="low_var_kl",
        )
        self._actor.set_loss_fn(partial(ppo_loss, config=actor))

    @property
    def gradient_bytes(self) -> int:
        return sum(p.nbytes for p in self._actor.engine.module.parameters() if p.requires_grad)

    def step(self, first: int) -> None:
        """Train on the groups from ``first`` on, as ``RayPPOTrainer`` does: reference, advantages, update.

        The old log-probabilities are the sampler's, as with verl's ``bypass_mode``, which saves a forward pass. The
        reference's stand in for them: the policy has hardly moved.
        """
        from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
        from verl.utils import tensordict_utils
        from verl.workers.utils.padding import left_right_2_no_padding, no_padding_2_padding

        batch = self._batch(first)
        found = left_right_2_no_padding(batch.to_tensordict())
        tensordict_utils.assign_non_tensor(found, calculate_entropy=False, compute_loss=False)
        output = self._reference.infer_batch(found)
        log_probs = no_padding_2_padding(tensordict_utils.get(output, "log_probs"), found).float()

        options, mask = self._options, batch.batch["response_mask"]
        rewards = torch.zeros(mask.shape)
        rewards[:, -1] = torch.arange(len(mask)) % 7
        of_group = np.arange(options.groups).repeat(options.size)
        advantages, _ = compute_grpo_outcome_advantage(rewards, mask.float(), of_group)
        batch.batch.update({"ref_log_prob": log_probs, "old_log_probs": log_probs, "advantages": advantages})
        update = left_right_2_no_padding(batch.to_tensordict())
        tensordict_utils.assign_non_tensor(
            update,
            calculate_entropy=False,
            compute_loss=True,
            global_batch_size=len(mask),
            mini_batch_size=len(mask),
            epochs=1,
            seed=0,
            dataloader_kwargs={"shuffle": False},
        )
        (norm,) = tensordict_utils.get(self._actor.train_mini_batch(update), "metrics")["grad_norm"]
        assert 0 < norm < float("inf"), norm

    def _batch(self, first: int) -> Any:
        """Make a ``DataProto`` of the groups' tokens and pictures, as verl's rollout does; a picture is read once."""
        from verl import DataProto

        options = self._options
        prompts, responses, pictures = [], [], []
        for seed in range(first, first + options.groups):
            messages, images = vlm.question(vlm.SHAPES[options.shape], options.prompt, seed)
            content = [{"type": "image"}, {"type": "text", "text": messages[0].text}]
            text = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            image = Image.open(io.BytesIO(next(iter(images.values())))).convert("RGB")
            inputs = dict(self._processor(text=[text], images=[[image]], return_tensors="pt"))
            del inputs["attention_mask"]
            ids = inputs.pop("input_ids")
            assert ids.shape == (1, options.prompt), ids.shape
            prompts += [ids] * options.size
            responses += vlm.completions(options.size, options.response, seed)
            pictures += [inputs] * options.size
        asked, answered = torch.cat(prompts), torch.tensor(responses)
        tokens = torch.cat([asked, answered], dim=1)
        tensors = {
            "prompts": asked,
            "responses": answered,
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "position_ids": torch.arange(tokens.shape[1]).repeat(len(tokens), 1),
            "response_mask": torch.ones_like(answered),
        }
        given = {"multi_modal_inputs": np.array(pictures, dtype=object)}
        return DataProto.from_dict(tensors=tensors, non_tensors=given, meta_info={"temperature": 1.0})


def _worker(options: argparse.Namespace, steps: int) -> Any:
    """Make a worker that holds the model in float32 and takes a group at a time.

    The reference gets one that could train, because verl's forward-only engine pins memory, which needs a GPU.
    """
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
    from verl.workers.engine_workers import TrainingWorker

    spec = vlm.spec_of().optimiser
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=HFModelConfig(
                path=options.model,
                use_remove_padding=False,  # needs flash-attn
                enable_gradient_checkpointing=options.recompute,
                override_config={"attn_implementation": "sdpa"},
            ),
            engine_config=FSDPEngineConfig(
                strategy=_SHARDING,
                use_dynamic_bsz=False,
                micro_batch_size_per_gpu=options.size,
                infer_micro_batch_size_per_gpu=options.size,
                mixed_precision=dict.fromkeys(("param_dtype", "reduce_dtype", "buffer_dtype"), "fp32"),
            ),
            optimizer_config=FSDPOptimizerConfig(
                lr=spec.lr,
                betas=spec.betas,
                weight_decay=spec.weight_decay,
                clip_grad=spec.grad_clip,
                lr_warmup_steps=0,
                total_training_steps=steps,
            ),
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    return worker


def _register_cpu() -> None:
    """Register a platform for CPUs, and verl's FSDP engine on it with the image encoder frozen.

    It is frozen here because the engine does not read verl's ``freeze_vision_tower``.
    """
    from verl.plugin.platform import PlatformBase, set_platform

    none = dict.fromkeys(
        ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"), lambda: 0
    )

    class Cpu(PlatformBase):  # type: ignore[misc]
        device_name = vendor_name = "cpu"
        device_module = SimpleNamespace(**none, mem_get_info=lambda: (0, 0), get_device_name=lambda: "CPU")
        """Figures of a device that verl reports and ``torch.cpu`` lacks."""

        def is_available(self) -> bool:
            return True

        def current_device(self) -> torch.device:
            return torch.device("cpu")

        def device_count(self) -> int:
            return 1

        def set_device(self, device_index: int) -> None: ...

        def synchronize(self, device_index: int | None = None) -> None: ...

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        manual_seed_all = manual_seed

        def set_allocator_settings(self, settings: str) -> None: ...

        def empty_cache(self) -> None: ...

        def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
            return None, None

        def communication_backend_name(self) -> str:
            return "gloo"

        def visible_devices_envvar(self) -> str:
            return "CUDA_VISIBLE_DEVICES"

        @contextlib.contextmanager
        def nvtx_range(self, msg: str) -> Iterator[None]:
            yield

        def profiler_start(self) -> None: ...

        def profiler_stop(self) -> None: ...

        def ray_resource_name(self) -> str:
            return "CPU"

        def ray_noset_envvars(self) -> list[str]:
            return []

        def is_ipc_supported(self) -> bool:
            return False

        def cudart(self) -> None:
            return None

    set_platform(Cpu())
    from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead

    @EngineRegistry.register(model_type="language_model", backend=_SHARDING, device="cpu")
    class Frozen(FSDPEngineWithLMHead):  # type: ignore[misc]
        def _build_module(self) -> Any:
            from mor_trainer.model import loading

            model = super()._build_module()
            loading.tune(model, vlm.spec_of().tuning, freeze_vision=True)
            return model
