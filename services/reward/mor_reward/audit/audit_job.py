"""Audit of a model folder: attacks on its margins, and their success as ``audit.json`` and as a list of pairs."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from mor_core.datafiles import Preference, read_preferences
from mor_core.errors import Conflict, Invalid
from mor_core.wire import MembershipAttack, PrivacyAudit, PrivacyUnit

from mor_reward import model_store
from mor_reward.audit import roc_curve
from mor_reward.audit.membership import Margins, MarginSet
from mor_reward.audit.shadow_models import AuditInterrupted, UntrainedModel, train_shadows
from mor_reward.audit_record import AuditRecord, LabelInference, write_record
from mor_reward.backbones import Backbone
from mor_reward.model_store import RewardManifest
from mor_reward.preference_trainer import FEATURE_BYTES, PreferencePair, margins, require_scorable
from mor_reward.private_training.privacy_units import unit_materials
from mor_reward.private_training.private_run import MOST_PUBLIC
from mor_reward.progress import ProgressReporter
from mor_reward.splits import Splits, picture_numbers, split_rows
from mor_reward.training_job import data_fingerprint

_SCORED_TOGETHER = 64
"""Pairs scored between two looks at a request to stop."""
_EQUAL = 1e-6
"""Largest margin, logits, of a model that scores all responses alike."""


@dataclass(frozen=True)
class AuditJob:
    """Model, its training data and settings of one audit."""

    model: Path
    data: Path
    shadows: int
    base: str | None = None
    """Checkpoint that a vlm or text model was trained from, or the reward model that it started from."""
    public: Path | None = None
    """Public preferences that scaled the head of a private training."""
    seed: int = 0
    """Seed of halves, shadow models and resamples."""
    device: str = "cpu"
    columns: str = ""
    """Other names of the columns in ``data``."""
    most_invalid: float = 0.0
    """Largest share of invalid rows in ``data``, as in the training."""
    unseen: Path | None = None
    """Further preferences of the same kind, about other pictures, that the model was not trained on."""


@dataclass(frozen=True)
class AuditedUnits:
    """Units of which an audit asks whether the model was trained on them."""

    picture: Int[np.ndarray, " pairs"]
    """Picture of each pair, numbered from 0."""
    person: Int[np.ndarray, " pairs"] | None
    """Person of each pair, where a training with differential privacy hid persons; a picture of two joins these."""

    @property
    def together(self) -> Int[np.ndarray, " pairs"]:
        """Unit of each pair that the split kept together: these are trained on, or not, independently."""
        return self.picture if self.person is None else self.person


@dataclass(frozen=True)
class ExposedPair:
    """Training pair that the best attack recognises most easily."""

    row: int
    """Number of the row among those read, from 1."""
    id: str
    above: float
    """Share of the pairs it was not trained on that look less like training pairs."""


@dataclass(frozen=True)
class AuditFindings:
    """Figures of an audit, and what only the owner may see."""

    manifest: RewardManifest
    record: AuditRecord
    at_risk: tuple[ExposedPair, ...]
    """Training pairs, the most recognisable first."""
    without_shadows: str | None
    """Reason why no shadow models were trained although some were wanted."""
    unlike: float | None
    """AUC by which models that were not trained on them tell ``AuditJob.unseen`` from the data; null where that may be
    chance, and without ``unseen``."""


def audit(
    job: AuditJob,
    reporter: ProgressReporter,
    stopped: Callable[[], bool] = lambda: False,
    left_out: list[str] | None = None,
) -> AuditFindings:
    """Attack the model in ``job.model`` and write ``audit.json`` beside it.

    The problems of invalid rows are added to ``left_out``.

    Raises:
        DataFileError: a line of a preference file is invalid.
        Conflict: the data is not what the model was trained on, or ``job.unseen`` has some of its pictures.
        Invalid: the folder, the checkpoint or a row is invalid.
        AuditInterrupted: ``stopped`` returned true.
    """
    manifest, backbone = model_store.load(job.model, job.device)
    problems = [] if left_out is None else left_out
    rows = read_preferences(job.data, job.columns, problems, most_left_out=job.most_invalid)
    _check_data(manifest, rows)
    trained = len(rows)
    if job.unseen is not None:
        rows = [*rows, *read_preferences(job.unseen, job.columns, problems, most_left_out=job.most_invalid)]
    pairs = [PreferencePair.of(row) for row in rows]
    hidden: PrivacyUnit = "picture" if manifest.recipe.privacy is None else manifest.recipe.privacy.unit
    tied = [unit_materials(pair, hidden) for pair in pairs]
    splits = split_rows(tied[:trained], manifest.recipe.heldout_fraction, manifest.recipe.seed)
    units = AuditedUnits(
        np.array(picture_numbers([unit_materials(pair, "picture") for pair in pairs])),
        np.array(picture_numbers(tied)) if hidden == "person" else None,
    )
    _check_unseen(units.together, trained, "person" if hidden == "person" else "picture")
    require_scorable(pairs, rows, backbone)
    backbone.use_cache(FEATURE_BYTES)
    untrained = UntrainedModel(manifest, backbone, job.model, job.base, _public_pairs(manifest, job.public), job.device)
    found = _measured(untrained, pairs, units.together, job, reporter=reporter, stopped=stopped)
    member = np.zeros(len(rows), dtype=bool)
    member[list(splits.train)] = True
    record, per_pair = _record(found, member, units, manifest, job.seed)
    write_record(job.model, record)
    missing = untrained.missing if job.shadows else None
    unlike = _unlike(found, np.arange(len(rows)) < trained, units.together, job.seed)
    return AuditFindings(manifest, record, _most_at_risk(per_pair, member, rows, splits), missing, unlike)


def _check_data(manifest: RewardManifest, rows: Sequence[Preference]) -> None:
    """Check that ``rows`` are what the model was trained on: otherwise nobody knows the members.

    Raises:
        Invalid: the model was adopted, or trained by a release that did not record its data.
        Conflict: they are not.
    """
    if manifest.adopted is not None:
        raise Invalid(
            f"model {manifest.name!r} was adopted, so that its training pairs are unknown here; audit it "
            "with the tools that trained it"
        )
    if manifest.training.data is None or manifest.calibration is None:
        raise Invalid(
            f"model {manifest.name!r} has no record of its data, so that its training pairs are unknown; train it "
            "again with this version of mor-reward"
        )
    if data_fingerprint(rows, manifest.recipe.privacy) != manifest.training.data:
        trained = manifest.training.train_pairs + manifest.training.calibration_pairs + manifest.calibration.pairs
        raise Conflict(
            f"these {len(rows)} rows are not the {trained} that model {manifest.name!r} was trained on; give the same "
            "--data, with the same --map and --skip-invalid, as in 'mor-reward train'"
        )


def _check_unseen(together: Int[np.ndarray, " pairs"], trained: int, unit: str) -> None:
    """Check that no unit of the rows beyond the first ``trained``, those of ``--unseen``, is among these.

    Raises:
        Conflict: one is.
    """
    shared = int(np.isin(together[trained:], together[:trained]).sum())
    if shared:
        raise Conflict(
            f"{shared} of the {len(together) - trained} rows of --unseen are about a {unit} of --data, which the model "
            "may have been trained on; leave them out"
        )


def _public_pairs(manifest: RewardManifest, file: Path | None) -> list[PreferencePair]:
    """Return the public pairs that scaled the head of a private training; none without ``file``.

    Raises:
        Conflict: they are others.
    """
    if file is None:
        return []
    rows = read_preferences(file)[:MOST_PUBLIC]
    if data_fingerprint(rows) != manifest.training.public:
        raise Conflict(
            f"--dp-public {file} is not what scaled model {manifest.name!r}; give the file of 'mor-reward train "
            "--dp-public', or none if there was none"
        )
    return [PreferencePair.of(row) for row in rows]


def _measured(
    untrained: UntrainedModel,
    pairs: Sequence[PreferencePair],
    together: Int[np.ndarray, " pairs"],
    job: AuditJob,
    *,
    reporter: ProgressReporter,
    stopped: Callable[[], bool],
) -> MarginSet:
    """Compute the margins of the audited, the untrained and the shadow models."""
    target = _margins(untrained.audited, pairs, "scoring", reporter, stopped)
    if untrained.missing is not None:
        return MarginSet(target, None, np.empty((0, len(pairs))), np.empty((0, len(pairs)), dtype=bool))
    before = untrained.build(job.seed)
    before.features = untrained.audited.features
    reference = _margins(before, pairs, "scoring untrained", reporter, stopped)
    del before
    shadows, included = np.empty((0, len(pairs))), np.empty((0, len(pairs)), dtype=bool)
    if job.shadows:
        shadows, included = train_shadows(
            untrained, pairs, together, job.shadows, seed=job.seed, reporter=reporter, stopped=stopped
        )
    alike = float(np.abs(reference).max()) < _EQUAL
    return MarginSet(target, None if alike else reference, shadows, included)


def _margins(
    backbone: Backbone,
    pairs: Sequence[PreferencePair],
    phase: str,
    reporter: ProgressReporter,
    stopped: Callable[[], bool],
) -> Margins:
    reporter.phase(phase, len(pairs))
    found = []
    for start in range(0, len(pairs), _SCORED_TOGETHER):
        found.append(margins(backbone, pairs[start : start + _SCORED_TOGETHER]))
        reporter.advance(min(start + _SCORED_TOGETHER, len(pairs)))
        if stopped():
            raise AuditInterrupted("stopped while scoring; start again")
    return np.concatenate(found)


def _record(
    found: MarginSet, member: Bool[np.ndarray, " pairs"], units: AuditedUnits, manifest: RewardManifest, seed: int
) -> tuple[AuditRecord, Margins]:
    """Return the record, and the numbers of the best attack on pairs."""
    numbered: dict[PrivacyUnit, np.ndarray] = {"pair": np.arange(len(member)), "picture": units.picture}
    if units.person is not None:
        numbered["person"] = units.person
    tried: list[MembershipAttack] = []
    scores: list[Margins] = []
    epsilon_lower = 0.0
    for unit, number in numbered.items():
        first = np.unique(number, return_index=True)[1]
        inside, cluster = member[first], units.together[first]
        named = list(found.means(number).attacks())
        for name, numbers in named:
            scores.append(numbers)
            tried.append(
                MembershipAttack(
                    attack=name,
                    unit=unit,
                    auc=roc_curve.auc(numbers, inside),
                    auc_interval=roc_curve.auc_interval(numbers, inside, cluster, seed, tried=len(named)),
                    true_positives=roc_curve.true_positives(numbers, inside),
                    members=int(inside.sum()),
                    non_members=int((~inside).sum()),
                )
            )
            if number is units.together:
                bound = roc_curve.epsilon_lower(numbers, inside, seed, tried=len(named))
                epsilon_lower = max(epsilon_lower, bound)
    best = [max((one for one in tried if one.unit == unit), key=lambda attack: attack.auc) for unit in numbered]
    statement = PrivacyAudit(
        date=datetime.datetime.now(datetime.UTC).date(),
        model_version=manifest.version,
        attacks=tuple(best),
        epsilon_lower=epsilon_lower,
    )
    record = AuditRecord(
        statement=statement,
        attacks=tuple(tried),
        labels=_labels(found, member, units.together, seed),
        shadows=len(found.shadows),
    )
    return record, scores[tried.index(best[0])]


def _unlike(
    found: MarginSet, given: Bool[np.ndarray, " pairs"], together: Int[np.ndarray, " pairs"], seed: int
) -> float | None:
    """Return ``AuditFindings.unlike``. ``given``: pairs of the data, rather than of ``AuditJob.unseen``."""
    if given.all():
        return None
    margins = found.without() if len(found.shadows) else found.untrained
    if margins is None:
        return None
    low, high = roc_curve.auc_interval(margins, given, together, seed)
    return None if low <= 0.5 <= high else roc_curve.auc(margins, given)


def _labels(
    found: MarginSet, member: Bool[np.ndarray, " pairs"], together: Int[np.ndarray, " pairs"], seed: int
) -> LabelInference:
    told = (found.target > 0) + 0.5 * (found.target == 0)
    against = found.without() < 0 if len(found.shadows) else np.zeros_like(member)
    inside, outside = against & member, against & ~member
    both = bool(inside.any() and outside.any())
    interval = None
    if both:
        # Of a yes-or-no number, the AUC is (1 + difference of the shares)/2.
        low, high = roc_curve.auc_interval(told[against], member[against], together[against], seed)
        interval = 2 * low - 1, 2 * high - 1
    return LabelInference(
        told=float(told[member].mean()),
        told_held_out=float(told[~member].mean()),
        against_pattern=int(inside.sum()),
        against_pattern_told=float(told[inside].mean()) if inside.any() else None,
        against_pattern_held_out=int(outside.sum()),
        against_pattern_told_held_out=float(told[outside].mean()) if outside.any() else None,
        memorised=float(told[inside].mean() - told[outside].mean()) if both else None,
        memorised_interval=interval,
    )


def _most_at_risk(
    scores: Margins, member: Bool[np.ndarray, " pairs"], rows: Sequence[Preference], splits: Splits
) -> tuple[ExposedPair, ...]:
    others = np.sort(scores[~member])
    ranked = sorted(splits.train, key=lambda row: -scores[row])
    return tuple(
        ExposedPair(row + 1, rows[row].prompt.id, float(np.searchsorted(others, scores[row]) / len(others)))
        for row in ranked
    )
