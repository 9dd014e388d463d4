"""DP-SGD (Abadi et al. 2016) over units: a unit's gradient is clipped as a whole, whatever its number of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from mor_core.errors import Invalid

from mor_reward.backbones import Backbone
from mor_reward.bradley_terry import bradley_terry_loss
from mor_reward.preference_trainer import PreferencePair, PreferenceTrainer
from mor_reward.private_training.clipping import clipped
from mor_reward.private_training.privacy_noise import PrivacyNoise
from mor_reward.private_training.privacy_units import PrivacyUnits
from mor_reward.progress import ProgressReporter
from mor_reward.splits import Splits
from mor_reward.train_config import TrainConfig


class UnitTrainer(PreferenceTrainer):
    """Training loop whose steps sample units, clip each unit's gradient and add noise; no early stopping.

    Each unit has a backward pass of its own, which any architecture allows. The last weights are kept. A step that is
    repeated after an interruption draws new units and noise; the first attempt is never released and costs nothing.
    """

    def __init__(
        self,
        backbone: Backbone,
        pairs: Sequence[PreferencePair],
        splits: Splits,
        config: TrainConfig,
        *,
        units: PrivacyUnits,
        noise_multiplier: float,
        clip: float,
        noise: PrivacyNoise,
        fingerprint: str,
        folder: Path,
        reporter: ProgressReporter,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """``units`` are those of the training split; their row numbers are positions in it.

        Raises:
            Invalid: a layer that is trained mixes the examples of a batch.
        """
        super().__init__(
            backbone,
            pairs,
            splits,
            config,
            fingerprint=fingerprint,
            folder=folder,
            reporter=reporter,
            stopped=stopped,
        )
        backbone.train()
        if any(
            isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) and layer.training for layer in backbone.modules()
        ):
            raise Invalid(
                "the backbone trains batch normalisation, which mixes the units of a batch, so that clipping bounds "
                "none of them; freeze the encoder, or give --dp-part head"
            )
        self._units = units
        self._sigma = noise_multiplier
        self._clip = clip
        self._noise = noise
        self._rate = sampling_rate(config, len(splits.train))

    def _batch(self, epoch: int, within: int) -> list[int]:
        return self._noise.sampled(len(self._units), self._rate)

    def _step(self, batch: Sequence[int], step: int, steps: int) -> float:
        self._begin_step(step, steps)
        total = np.zeros(sum(parameter.numel() for parameter in self._parameters))
        loss_sum = 0.0
        for number in batch:
            pairs = [self._pairs[self._splits.train[position]] for position in self._units.rows[number]]
            scores = self._backbone([example for pair in pairs for example in (pair.chosen, pair.rejected)])
            loss = bradley_terry_loss(scores[0::2], scores[1::2], self._config.centring)
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).double().cpu().numpy()
            total += clipped(flat[None], self._clip)[0]
            loss_sum += float(loss.item())
        noisy = self._noise.add(total, self._sigma * self._clip) / (self._rate * len(self._units))
        start = 0
        for parameter in self._parameters:
            own = torch.from_numpy(noisy[start : start + parameter.numel()]).view_as(parameter)
            parameter.grad = own.to(parameter.device, parameter.dtype)
            start += parameter.numel()
        self._optimiser.step()
        return loss_sum / max(1, len(batch))

    def _end_epoch(self, epoch: int) -> str:
        self._state.best_epoch, self._state.loss_sum = epoch + 1, 0.0
        return ""


def sampling_rate(config: TrainConfig, train_pairs: int) -> float:
    """Return the probability with which a step samples a unit, so that it has ``batch_size`` pairs on average."""
    return min(1.0, config.batch_size / train_pairs)
