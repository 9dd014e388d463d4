"""One private training: its units and budget, the fit, the figures it may release, and the claim on the card."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mor_core.errors import Invalid
from mor_core.wire import Calibration, Privacy

from mor_reward.backbones import Backbone
from mor_reward.preference_trainer import (
    PreferencePair,
    TrainingInterrupted,
    TrainingOutcome,
    encode_features,
    margins,
)
from mor_reward.private_training.accounting import accountant_name, default_delta, gaussian_mu, noise_multiplier
from mor_reward.private_training.linear_part import linearise, move
from mor_reward.private_training.logistic import STEPS, private_fit
from mor_reward.private_training.privacy_noise import PrivacyNoise
from mor_reward.private_training.privacy_units import PrivacyUnits, privacy_units
from mor_reward.private_training.released_figures import private_calibration, private_temperature
from mor_reward.private_training.unit_trainer import UnitTrainer, sampling_rate
from mor_reward.progress import ProgressReporter
from mor_reward.splits import Splits
from mor_reward.train_config import PrivateTraining, TrainConfig

_LARGEST_ERROR = 0.15
"""Standard deviation of the noise on the held-out accuracy above which a training is refused: its card would say
nothing."""
_NEIGHBOURS = "; neighbours: one unit left out"
"""Relation of data sets that all mechanisms here are accounted for: the rows of one unit count for nothing in one of
them. Its exchange for another unit is two such changes."""
MOST_PUBLIC = 2000
"""Public pairs whose features scale the head; more change little and have to be encoded."""
_UNUSED = {
    "mismatch": "a synthetic pair belongs to the units of two rows",
    "patience": "early stopping would look at private data again",
}
_UNUSED_BY_HEAD = ("batch_size", "lr", "weight_decay", "centring", "checkpoint_every", "warmup_ratio", "max_grad_norm")


@dataclass(frozen=True)
class PrivateRun:
    """Budget and units of one training under differential privacy.

    Training, temperature and figures use units of their own, so that ε and δ bound each unit once (parallel
    composition).
    """

    config: PrivateTraining
    train: PrivacyUnits
    calibration: PrivacyUnits
    report: PrivacyUnits
    delta: float
    noise: PrivacyNoise
    public: Sequence[PreferencePair] = ()
    """Public pairs, whose features scale the head."""

    @classmethod
    def of(
        cls,
        train_config: TrainConfig,
        pairs: Sequence[PreferencePair],
        splits: Splits,
        public: Sequence[PreferencePair] = (),
        *,
        released: bool = True,
    ) -> PrivateRun:
        """Divide the splits into units and check the budget, which binds a model that is ``released`` alone.

        Raises:
            Invalid: δ is not below 1/units, ε is too small for so few units, an option has no private form, or a row
                names no person.
        """
        config = train_config.privacy
        assert config is not None
        check_options(train_config)
        units = privacy_units(pairs, config.unit)
        delta = default_delta(len(units)) if config.delta is None else config.delta
        if released and delta * len(units) >= 1:
            raise Invalid(
                f"--dp-delta {delta:g}: with {len(units)} units a mechanism could publish one of them whole; give less "
                f"than 1/{len(units)}, or leave it out for {default_delta(len(units)):g}"
            )
        train, calibration, report = (units.within(rows) for rows in (splits.train, splits.calibration, splits.report))
        run = cls(config, train, calibration, report, delta, PrivacyNoise(), public)
        error = math.sqrt(2) / gaussian_mu(config.epsilon, delta) / len(run.report)
        if released and error > _LARGEST_ERROR:
            raise Invalid(
                f"--dp-epsilon {config.epsilon:g} with δ = {delta:g} is too small for {len(run.report)} held-out units "
                f"({config.unit}): noise of ±{error:.0%} would hide the accuracy; give more data, a larger ε, or a "
                "larger --heldout-fraction"
            )
        return run

    def fit_head(
        self,
        backbone: Backbone,
        pairs: Sequence[PreferencePair],
        splits: Splits,
        *,
        epochs: int,
        reporter: ProgressReporter,
        stopped: Callable[[], bool],
    ) -> TrainingOutcome:
        """Fit the linear part of ``backbone`` on the training split; 0 ``epochs`` leave it as it is.

        Raises:
            TrainingInterrupted: ``stopped`` returned true; there is no checkpoint, and nothing was released.
        """
        feature_seconds = encode_features(backbone, [*pairs, *self.public], reporter, stopped)
        started = time.perf_counter()
        steps = 0
        if epochs:
            known = linearise(backbone, self.public).features if self.public else None
            reporter.phase("training", len(splits.train))

            def advance(done: int) -> None:
                reporter.advance(done)
                if stopped():
                    raise TrainingInterrupted("stopped before the fit, which takes seconds; start again")

            linear = linearise(backbone, [pairs[row] for row in splits.train], advance)
            fitted = private_fit(linear, self.train, self.config.epsilon, self.delta, self.noise, public=known)
            move(backbone, fitted.change)
            steps = fitted.steps
        backbone.eval()
        backbone.merge_adapters()
        return TrainingOutcome(steps, min(1, steps), feature_seconds, time.perf_counter() - started)

    def unit_trainer(
        self,
        backbone: Backbone,
        pairs: Sequence[PreferencePair],
        splits: Splits,
        train_config: TrainConfig,
        *,
        fingerprint: str,
        folder: Path,
        reporter: ProgressReporter,
        stopped: Callable[[], bool],
    ) -> UnitTrainer:
        """Return the trainer of all trainable parameters, with the noise that the budget wants."""
        rate, steps = self._sampling(train_config)
        noise = noise_multiplier(self.config.epsilon, self.delta, rate, steps) if steps else 0.0
        return UnitTrainer(
            backbone,
            pairs,
            splits,
            train_config,
            units=self.train,
            noise_multiplier=noise,
            clip=self.config.clip,
            noise=self.noise,
            fingerprint=fingerprint,
            folder=folder,
            reporter=reporter,
            stopped=stopped,
        )

    def figures(self, backbone: Backbone, pairs: Sequence[PreferencePair], splits: Splits) -> Calibration:
        """Choose the temperature and measure the held-out figures, each on its own split, with noise."""
        found = margins(backbone, [pairs[row] for row in splits.calibration])
        temperature = private_temperature(found, self.calibration, self.config.epsilon, self.noise)
        found = margins(backbone, [pairs[row] for row in splits.report])
        return private_calibration(
            found, temperature, self.report, epsilon=self.config.epsilon, delta=self.delta, noise=self.noise
        )

    def claim(self, train_config: TrainConfig, public: str) -> Privacy:
        """Return the statement of the card. ``public``: origin of the weights before the training."""
        rate, steps = self._sampling(train_config)
        head = self.config.part == "head"
        scaled = f"{len(self.public)} pairs that scale the features; " if self.public else ""
        return Privacy(
            epsilon=self.config.epsilon,
            delta=self.delta,
            unit=self.config.unit,
            mechanism=(
                f"noisy gradients of the linear part, all units in each of {STEPS if steps else 0} steps{_NEIGHBOURS}"
                if head
                # Rate and steps would tell the number of pairs, of which the card shows one figure.
                else f"DP-SGD over units, Poisson sampling{_NEIGHBOURS}"
            ),
            accountant=accountant_name(1.0 if head else rate),
            public=f"{public}; {scaled}number of rows, which rows share a picture or person, and the options given",
        )

    def _sampling(self, train_config: TrainConfig) -> tuple[float, int]:
        """Return the sampling rate and the number of steps of DP-SGD."""
        train_pairs = sum(map(len, self.train.rows))
        return sampling_rate(train_config, train_pairs), train_config.epochs * math.ceil(
            train_pairs / train_config.batch_size
        )


def check_options(train_config: TrainConfig) -> None:
    """Refuse options that a private training would ignore.

    Raises:
        Invalid: names the option and the reason.
    """
    usual, privacy = TrainConfig(), train_config.privacy
    for field, reason in _UNUSED.items():
        if getattr(train_config, field) != getattr(usual, field):
            raise Invalid(f"--{field} has no private form, since {reason}; leave it out with --dp-epsilon")
    assert privacy is not None
    if privacy.part == "trained":
        return
    if train_config.epochs not in (0, usual.epochs):
        raise Invalid(
            f"--epochs {train_config.epochs}: --dp-part head trains by {STEPS} steps on all rows; leave it out"
        )
    for field in _UNUSED_BY_HEAD:
        if getattr(train_config, field) != getattr(usual, field):
            option = field.replace("_", "-")
            raise Invalid(f"--{option} is for --dp-part trained; leave it out, or give that option")
    if privacy.clip != PrivateTraining(epsilon=1).clip:
        raise Invalid("--dp-clip is for --dp-part trained; the bound of the head follows from its features")
