"""Bradley–Terry training of a reward model on preference pairs."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from jaxtyping import Float
from mor_core import disk_full
from mor_core.datafiles import Preference
from mor_core.errors import Invalid, MorError
from mor_core.wire import image_hashes
from torch import Tensor

from mor_reward import calibration, training_checkpoint
from mor_reward.backbones import Backbone, Example, Picture
from mor_reward.bradley_terry import bradley_terry_loss
from mor_reward.progress import ProgressReporter
from mor_reward.splits import Splits
from mor_reward.train_config import TrainConfig, learning_rate

_SCORE_BATCH = 64
"""Pairs scored at a time outside training; bounds memory."""
FEATURE_BYTES = 4 << 30
"""Size of the feature cache in training, bytes; room for the features of several thousand pictures."""
_STOP_CHECK_S = 0.2
"""Seconds between looks at a request to stop while training waits for room on its disk."""

Margins = Float[np.ndarray, " pairs"]


class TrainingInterrupted(MorError):
    """Training stopped on request; its checkpoint is written."""


@dataclass(frozen=True)
class PreferencePair:
    """Preference as the two examples to score, with the text of its question."""

    chosen: Example
    rejected: Example
    question: str
    person: str | None = None
    """Person of the row's column of that name."""

    @classmethod
    def of(cls, row: Preference) -> PreferencePair:
        messages = row.prompt.messages
        pictures = tuple(Picture(digest, row.prompt.images[digest]) for digest in image_hashes(messages))
        question = "\n".join(message.text for message in messages)
        chosen, rejected = (Example(messages, pictures, response) for response in (row.chosen, row.rejected))
        return cls(chosen, rejected, question, row.prompt.person)


@dataclass(frozen=True)
class TrainingOutcome:
    """Figures of a finished training; the backbone then holds the best epoch's weights."""

    steps: int
    best_epoch: int
    feature_seconds: float
    train_seconds: float


def require_scorable(pairs: Sequence[PreferencePair], rows: Sequence[Preference], backbone: Backbone) -> None:
    """Raise an error if ``backbone`` cannot score one of the rows.

    Raises:
        Invalid: names the id of the first such row and the reason.
    """
    for pair, row in zip(pairs, rows, strict=True):
        for example in (pair.chosen, pair.rejected):
            reason = backbone.unscorable_reason(example)
            if reason is not None:
                raise Invalid(
                    f"row {row.prompt.id!r}: {reason}; raise that limit of the backbone with --set, or drop the row"
                )


def margins(backbone: Backbone, pairs: Sequence[PreferencePair]) -> Margins:
    """Compute the raw score differences r⁺ − r⁻.

    Raises:
        Invalid: a score is not finite.
    """
    backbone.eval()
    parts: list[Tensor] = []
    for start in range(0, len(pairs), _SCORE_BATCH):
        scores = backbone.score(_examples(pairs[start : start + _SCORE_BATCH])).double().cpu()
        parts.append(scores[0::2] - scores[1::2])
    result: Margins = torch.cat(parts).numpy()
    if not np.isfinite(result).all():
        raise Invalid("the model's scores are not finite; train with a smaller --lr")
    return result


class PreferenceTrainer:
    """Training loop on the training split, with early stopping on the calibration split."""

    def __init__(
        self,
        backbone: Backbone,
        pairs: Sequence[PreferencePair],
        splits: Splits,
        config: TrainConfig,
        *,
        fingerprint: str,
        folder: Path,
        reporter: ProgressReporter,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """``folder`` is for the checkpoint; training ends when ``stopped``, called after every step, returns true."""
        self._backbone = backbone
        self._pairs = pairs
        self._splits = splits
        self._config = config
        self._folder = folder
        self._reporter = reporter
        self._stopped = stopped
        self._parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        self._optimiser = torch.optim.AdamW(self._parameters, lr=config.lr, weight_decay=config.weight_decay)
        self._per_epoch = math.ceil(len(splits.train) / config.batch_size)
        self._state = training_checkpoint.TrainingCheckpoint(
            fingerprint=fingerprint,
            step=0,
            weights={},
            optimiser={},
            rng=training_checkpoint.rng_states(),
            best_weights=None,
            best_nll=math.inf,
            best_epoch=0,
            loss_sum=0.0,
        )
        self._others: dict[str, list[str]] = {}
        for row in splits.train:
            self._others.setdefault(pairs[row].question, []).append(pairs[row].chosen.response)

    def resume(self) -> None:
        """Continue from the checkpoint in the folder.

        Raises:
            Invalid, Conflict: see ``training_checkpoint.read``.
        """
        self._state = training_checkpoint.read(self._folder, self._state.fingerprint)
        self._load(self._state.weights)
        self._optimiser.load_state_dict(self._state.optimiser)

    def run(self) -> TrainingOutcome:
        """Train to the end.

        Raises:
            TrainingInterrupted: ``stopped`` returned true; the state is in the checkpoint.
            Invalid: the loss is not finite.
        """
        feature_seconds = encode_features(self._backbone, self._pairs, self._reporter, self._stopped)
        started = time.perf_counter()
        state, steps = self._state, self._per_epoch * self._config.epochs
        training_checkpoint.set_rng_states(state.rng)
        self._reporter.phase("training", steps)
        self._reporter.advance(state.step)
        while state.step < steps and not self._out_of_patience():
            epoch, within = divmod(state.step, self._per_epoch)
            state.loss_sum += self._step(self._batch(epoch, within), state.step, steps)
            state.step += 1
            note = f"epoch {epoch + 1}  loss {state.loss_sum / (within + 1):.3f}"
            if state.step % self._per_epoch == 0:
                note += f"  {self._end_epoch(epoch)}"
            self._reporter.advance(state.step, note)
            if self._stopped():
                self._save()
                raise TrainingInterrupted(f"stopped after step {state.step} of {steps}; continue with --resume")
            if state.step % self._config.checkpoint_every == 0:
                self._save()
        if state.best_weights is not None:
            self._load(state.best_weights)
        self._backbone.eval()
        self._backbone.merge_adapters()
        return TrainingOutcome(state.step, state.best_epoch, feature_seconds, time.perf_counter() - started)

    def _batch(self, epoch: int, within: int) -> list[int]:
        """Return the rows of one step of an epoch."""
        rows = list(self._splits.train)
        Random(f"{self._config.seed}/{epoch}").shuffle(rows)
        return rows[within * self._config.batch_size :][: self._config.batch_size]

    def _begin_step(self, step: int, steps: int) -> None:
        self._backbone.train()
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, self._config)

    def _step(self, rows: Sequence[int], step: int, steps: int) -> float:
        self._begin_step(step, steps)
        pairs = [self._pairs[row] for row in rows]
        made_up = self._mismatched(pairs, step) if self._config.mismatch else []
        scores = self._backbone([*_examples(pairs), *made_up])
        chosen, rejected = scores[0 : 2 * len(pairs) : 2], scores[1 : 2 * len(pairs) : 2]
        loss = bradley_terry_loss(chosen, rejected, self._config.centring)
        if made_up:
            loss = loss + bradley_terry_loss(chosen.repeat_interleave(self._config.mismatch), scores[2 * len(pairs) :])
        if not torch.isfinite(loss):
            raise Invalid(
                f"the loss became {loss.item()} at step {step}; train with a smaller --lr than {self._config.lr:g}"
            )
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm)
        self._optimiser.step()
        return float(loss.item())

    def _mismatched(self, pairs: Sequence[PreferencePair], step: int) -> list[Example]:
        """For each pair, draw ``mismatch`` responses that were chosen for its question with another picture.

        A draw that equals the pair's own chosen response is replaced by its rejected one.
        """
        rng = Random(f"{self._config.seed}/mismatch/{step}")
        made_up = []
        for pair in pairs:
            for other in rng.choices(self._others[pair.question], k=self._config.mismatch):
                response = other if other != pair.chosen.response else pair.rejected.response
                made_up.append(Example(pair.chosen.messages, pair.chosen.pictures, response))
        return made_up

    def _end_epoch(self, epoch: int) -> str:
        state = self._state
        found = margins(self._backbone, [self._pairs[row] for row in self._splits.calibration])
        report = calibration.report(found, calibration.fit_temperature(found))
        if report.nll < state.best_nll:
            state.best_nll, state.best_epoch, state.best_weights = report.nll, epoch + 1, self._weights()
        state.loss_sum = 0.0
        return f"calibration accuracy {report.accuracy:.3f}"

    def _out_of_patience(self) -> bool:
        at_start_of_epoch = self._state.step % self._per_epoch == 0
        epochs_without = self._state.step // self._per_epoch - self._state.best_epoch
        return at_start_of_epoch and epochs_without >= self._config.patience

    def _weights(self) -> dict[str, Tensor]:
        return {
            name: parameter.detach().clone()
            for name, parameter in self._backbone.named_parameters()
            if parameter.requires_grad
        }

    def _load(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._backbone.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(weights[name])

    def _save(self) -> None:
        self._state.weights = self._weights()
        self._state.optimiser = self._optimiser.state_dict()
        self._state.rng = training_checkpoint.rng_states()
        write = functools.partial(training_checkpoint.write, self._folder, self._state)
        disk_full.write_when_room("the checkpoint", write, wait_for_room(self._stopped))


def encode_features(
    backbone: Backbone,
    pairs: Sequence[PreferencePair],
    reporter: ProgressReporter,
    stopped: Callable[[], bool] = lambda: False,
) -> float:
    """Fill the feature cache; return the seconds. If not all fit, cache none, so that trainings stay reproducible.

    Raises:
        TrainingInterrupted: ``stopped`` returned true.
    """
    started = time.perf_counter()
    backbone.eval()
    if backbone.features.bound != FEATURE_BYTES:  # else the features of earlier trainings stay
        backbone.use_cache(FEATURE_BYTES)
    reporter.phase("encoding", None)
    for done, added in enumerate(backbone.precompute_features(_examples(pairs)), 1):
        reporter.advance(done)
        if stopped():
            raise TrainingInterrupted("stopped before the first step; start again")
        if backbone.features.bytes + added > FEATURE_BYTES:
            backbone.use_cache(0)
            break
    return time.perf_counter() - started


def wait_for_room(stopped: Callable[[], bool]) -> Callable[[float], None]:
    """Return a pause of training that waits for room; it raises ``TrainingInterrupted`` when ``stopped`` is true."""

    def pause(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if stopped():
                raise TrainingInterrupted("stopped while the disk was full; make room, and continue with --resume")
            time.sleep(_STOP_CHECK_S)

    return pause


def _examples(pairs: Sequence[PreferencePair]) -> list[Example]:
    return [example for pair in pairs for example in (pair.chosen, pair.rejected)]
