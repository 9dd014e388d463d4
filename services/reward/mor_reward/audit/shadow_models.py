"""Shadow models: the audited model's recipe on random halves of its pictures, with frozen features encoded once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from jaxtyping import Bool, Int
from mor_core.errors import Invalid, MorError

from mor_reward import model_store, training_job
from mor_reward.audit.membership import Included, ShadowMargins
from mor_reward.backbones import Backbone, DualEncoderConfig, TextConfig, VlmConfig, build, on_device
from mor_reward.given_paths import MANIFEST
from mor_reward.model_store import RewardManifest
from mor_reward.preference_trainer import PreferencePair, TrainingInterrupted, margins
from mor_reward.private_training.private_run import PrivateRun
from mor_reward.progress import NoProgress, ProgressReporter
from mor_reward.splits import Splits
from mor_reward.train_config import TrainConfig

_NO_CHECKPOINT = 1 << 40
"""Steps between checkpoints of a shadow model: an interrupted audit starts again."""
_FEWEST_UNITS = 20
"""Pictures, or persons. Below, a random half may leave a shadow without any to train on or to stop early by."""


class AuditInterrupted(MorError):
    """Audit stopped on request; nothing is written."""


@dataclass(frozen=True)
class UntrainedModel:
    """Builder of the audited model as it was before its training, each time with other new weights."""

    manifest: RewardManifest
    audited: Backbone
    folder: Path
    base: str | None
    """Checkpoint, or folder of a reward model, that the model was trained from: folder or hub name."""
    public: Sequence[PreferencePair]
    """Public pairs that scaled the head of a private training."""
    device: str

    @property
    def missing(self) -> str | None:
        """Reason why the untrained model cannot be built; ``None`` if it can."""
        training = self.manifest.training
        if training.public is not None and not self.public:
            return "the public preferences that scaled its head are needed; give them with --dp-public"
        if training.start is None:
            return self._missing_checkpoint
        if self._start == training.start:
            return None
        return f"it started from another reward model, of version {training.start}; give its folder with --base"

    @property
    def _missing_checkpoint(self) -> str | None:
        match self.manifest.backbone:
            case DualEncoderConfig(freeze=True):
                return None
            case VlmConfig() | TextConfig():
                if self.base is not None:
                    return None
                return "the checkpoint that it was trained from is not in its folder; give it with --base"
            case _:
                return "its encoders were trained too, and their checkpoints are not in its folder"

    @property
    def _start(self) -> str | None:
        """Version of the reward model in ``base``; ``None`` where that is none."""
        if self.base is None or not (Path(self.base) / MANIFEST).is_file():
            return None
        return model_store.read_manifest(Path(self.base)).version

    def build(self, seed: int) -> Backbone:
        """Build the untrained model.

        Raises:
            Invalid: the checkpoint cannot be loaded.
        """
        torch.manual_seed(seed)
        if self.base is not None and self._start is not None:
            return model_store.load(Path(self.base), self.device)[1]
        config = self.manifest.backbone
        if isinstance(config, DualEncoderConfig):
            backbone = build(config, self.folder, pretrained=False)
            trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
            kept = {name: tensor for name, tensor in self.audited.state_dict().items() if name not in trained}
            backbone.load_state_dict(kept, strict=False)
        else:
            changes: dict[str, object] = {"model": self.base}
            if isinstance(config, VlmConfig):
                changes["lora_rank"] = self.manifest.training.lora_rank
            backbone = build(config.model_copy(update=changes), Path.cwd(), pretrained=True)
        return on_device(backbone.eval(), self.device)


def train_shadows(
    untrained: UntrainedModel,
    pairs: Sequence[PreferencePair],
    together: Int[np.ndarray, " pairs"],
    count: int,
    *,
    seed: int,
    reporter: ProgressReporter,
    stopped: Callable[[], bool],
) -> tuple[ShadowMargins, Included]:
    """Train ``count`` shadow models; return their margins of all pairs, and which pairs each was trained on.

    ``together`` is the number of each pair's picture, or person, from 0. Each is in half of the shadows. As with the
    audited model, some that a shadow is not trained on serve for early stopping.

    Raises:
        AuditInterrupted: ``stopped`` returned true.
        Invalid: there are too few pictures, or the recipe fails on half of the data.
    """
    if (units := int(together.max()) + 1) < _FEWEST_UNITS:
        raise Invalid(
            f"{units} different pictures, or persons, are too few for shadow models, which need {_FEWEST_UNITS}; give "
            "--shadows 0 for attacks without them"
        )
    chosen = _halves(units, count, seed)
    found = np.empty((count, len(pairs)))
    features = untrained.audited.features
    reporter.phase("shadow models", count)
    for shadow in range(count):
        recipe = _recipe(untrained.manifest, seed + 1 + shadow)
        backbone = untrained.build(recipe.seed)
        backbone.features = features
        splits = _splits(together, chosen[shadow], recipe.heldout_fraction, recipe.seed)
        with tempfile.TemporaryDirectory(prefix="mor-audit-") as scratch:
            try:
                private = None
                if recipe.privacy is not None:
                    private = PrivateRun.of(recipe, pairs, splits, untrained.public, released=False)
                training_job.fit(
                    backbone,
                    pairs,
                    splits,
                    recipe,
                    fingerprint="",
                    folder=Path(scratch),
                    reporter=_Noted(reporter, shadow),
                    stopped=stopped,
                    private=private,
                )
            except TrainingInterrupted as error:
                raise AuditInterrupted(f"stopped in shadow model {shadow + 1} of {count}; start again") from error
            except Invalid as error:
                raise Invalid(f"shadow model {shadow + 1} of {count}, on half of the data: {error}") from error
        found[shadow] = margins(backbone, pairs)
        features = backbone.features
        reporter.advance(shadow + 1)
    return found, chosen[:, together]


def _recipe(audited: RewardManifest, seed: int) -> TrainConfig:
    """Return the recipe of a shadow: the audited model's, with its δ, which for other data would be another.

    It writes no checkpoints; the fit of a private head has none to refuse.
    """
    changes: dict[str, object] = {"seed": seed, "checkpoint_every": _NO_CHECKPOINT}
    if (private := audited.recipe.privacy) is not None and audited.privacy is not None:
        changes["privacy"] = private.model_copy(update={"delta": audited.privacy.delta})
        if private.part == "head":
            del changes["checkpoint_every"]
    return audited.recipe.model_copy(update=changes)


def _halves(units: int, count: int, seed: int) -> Bool[np.ndarray, "shadows units"]:
    """Draw for each picture, or person, the half of the shadows that are trained on it."""
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(count), (units, 1)), axis=1)
    chosen: np.ndarray = (order < count // 2).T
    return chosen


def _splits(
    together: Int[np.ndarray, " pairs"], chosen: Bool[np.ndarray, " units"], heldout_fraction: float, seed: int
) -> Splits:
    """Return the splits of a shadow: the chosen units' pairs to train on, some of the others' to stop early."""
    others = np.flatnonzero(~chosen).tolist()
    Random(seed).shuffle(others)
    wanted = max(1, round(len(together) * heldout_fraction / 2))
    pairs_of = np.bincount(together, minlength=len(chosen))
    enough = 1 + int(np.searchsorted(np.cumsum(pairs_of[others]), wanted))
    calibration = np.isin(together, others[:enough])
    training = chosen[together]
    rows = (np.flatnonzero(where) for where in (training, calibration, ~training & ~calibration))
    return Splits(*(tuple(part.tolist()) for part in rows))


class _Noted(NoProgress):
    """Reporter of one shadow's training as the note of the whole."""

    def __init__(self, whole: ProgressReporter, done: int) -> None:
        self._whole, self._done = whole, done
        self._phase = ""

    def phase(self, name: str, total: int | None) -> None:
        self._phase = name

    def advance(self, done: int, note: str = "") -> None:
        self._whole.advance(self._done, f"{self._phase} {done}  {note}")
