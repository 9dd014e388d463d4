"""Adoption of an existing reward model: it is served as it scores, without training.

Sequence classifiers of transformers, adapters of PEFT on one, and vision-language models with a value head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mor_core import atomic
from mor_core.datafiles import Preference, read_preferences
from mor_core.errors import Invalid
from mor_core.failures import describe_failure, quote_failure
from mor_core.tensor_headers import read_header
from mor_core.weight_files import weight_files
from mor_core.wire import Calibration, Message
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForSequenceClassification

from mor_reward import calibration, model_store
from mor_reward.backbones import Backbone, Example, TextConfig, VlmConfig, build, on_device
from mor_reward.backbones.encoders import load_model
from mor_reward.backbones.text import TextClassifier
from mor_reward.given_paths import check_output
from mor_reward.model_store import RewardManifest, TrainingReport
from mor_reward.preference_trainer import PreferencePair, margins, require_scorable
from mor_reward.train_config import TrainConfig
from mor_reward.training_job import data_fingerprint

_ADAPTER = "adapter_config.json"
_LONGEST = 4096
"""Tokens of an input unless the model has fewer positions, or another length is given."""


@dataclass(frozen=True)
class AdoptionJob:
    """Checkpoint to adopt, and what to make of it."""

    checkpoint: str
    """Folder or hub name."""
    out: Path
    name: str
    domains: str = ""
    data: Path | None = None
    """Preferences that calibrate the scores; without them the card says that they are not calibrated."""
    base: str | None = None
    """Checkpoint that an adapter belongs to; by default the one that it names."""
    label: int | None = None
    """Index of the label whose logit is the score, of a head with several."""
    head: str | None = None
    """Name of the value head's tensor, where a checkpoint has several that could be it."""
    max_length: int | None = None
    device: str = "cpu"
    columns: str = ""
    most_invalid: float = 0.0
    overwrite: bool = False


def adopt(job: AdoptionJob, left_out: list[str]) -> RewardManifest:
    """Make a served reward model of a checkpoint; the problems of invalid rows are added to ``left_out``.

    Nothing is trained, so all pairs are held out: temperature and accuracy come from all of them.

    Raises:
        Conflict: ``out`` exists.
        Invalid: the checkpoint is no trained reward model, or cannot score a row.
        DataFileError: a line of the preference file is invalid.
    """
    check_output(job.out, overwrite=job.overwrite)
    rows: list[Preference] = []
    if job.data is not None:
        rows = list(read_preferences(job.data, job.columns, left_out, most_left_out=job.most_invalid))
    backbone = on_device(_reward_model(job).eval(), job.device)
    _check_scores(backbone, job.checkpoint)
    pairs = [PreferencePair.of(row) for row in rows]
    require_scorable(pairs, rows, backbone)
    figures = _calibration(backbone, pairs) if pairs else None
    with atomic.folder(job.out, replace=job.overwrite, mode=0o755) as folder:
        return model_store.save(
            folder,
            backbone,
            name=job.name,
            domains=job.domains,
            calibration=figures,
            train_config=TrainConfig(epochs=0),
            training=TrainingReport(
                train_pairs=0,
                left_out_rows=len(left_out),
                calibration_pairs=len(pairs),
                steps=0,
                best_epoch=0,
                train_seconds=0.0,
                feature_seconds=0.0,
                data=data_fingerprint(rows) if rows else None,
            ),
            adopted=job.checkpoint,
        )


def _check_scores(backbone: Backbone, checkpoint: str) -> None:
    """Score one short text: without preferences, nothing else runs the model or its chat template before it serves.

    Raises:
        Invalid: the template fails, or the score is not finite.
    """
    example = Example((Message(role="user", content="How many bars are there?"),), (), "Four.")
    reason = backbone.unscorable_reason(example)
    if reason is not None:
        raise Invalid(
            f"model {checkpoint!r} cannot score {example.response!r}: {reason}; correct --max-length, or its chat "
            "template"
        )
    if not backbone.score([example]).isfinite().all():
        raise Invalid(
            f"model {checkpoint!r}: its score of {example.response!r} is not finite; copy the checkpoint again, or "
            "give an earlier one of its training"
        )


def _calibration(backbone: Backbone, pairs: list[PreferencePair]) -> Calibration:
    found = margins(backbone, pairs)
    temperature = calibration.fit_temperature(found)
    return model_store.as_card_calibration(calibration.report(found, temperature), temperature)


def _reward_model(job: AdoptionJob) -> Backbone:
    """
    Raises:
        Invalid: the checkpoint is no trained reward model.
    """
    if (Path(job.checkpoint) / _ADAPTER).is_file():
        return _adapted_classifier(job)
    if job.base is not None:
        raise Invalid(f"--base belongs to an adapter, and {job.checkpoint!r} has no {_ADAPTER}; leave --base out")
    config = _config_of(job.checkpoint)
    classifies = any("SequenceClassification" in str(name) for name in config.architectures or ())
    if type(config) in AutoModelForImageTextToText._model_mapping and not classifies:
        return _with_value_head(job, config)
    if job.head is not None:
        raise Invalid("--head names a tensor of a vision-language model's value head; a classifier has its own")
    model = load_model(AutoModelForSequenceClassification, job.checkpoint, Path.cwd(), True, "model", headless=False)
    return _classifier(job, model, job.checkpoint)


def _config_of(checkpoint: str) -> Any:
    try:
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:  # transformers validates a configuration in many ways
        raise Invalid(
            f"model {checkpoint!r} cannot be loaded: {quote_failure(error)}; give the folder of a Hugging Face "
            "checkpoint whose family transformers knows without code from the checkpoint, or serve it where it runs "
            "with 'mor-reward serve --upstream'"
        ) from error


def _adapted_classifier(job: AdoptionJob) -> Backbone:
    """Merge an adapter of PEFT, as TRL's RewardTrainer writes it, into its classifier.

    Raises:
        Invalid: the adapter cannot be loaded, or neither it nor its base has a trained head.
    """
    folder = Path(job.checkpoint)
    try:
        settings = PeftConfig.from_pretrained(job.checkpoint)
    except Exception as error:  # a library that reads files of others may raise anything
        raise Invalid(f"{folder / _ADAPTER} cannot be read: {quote_failure(error)}; copy the adapter again") from error
    base = job.base or settings.base_model_name_or_path
    if not base:
        raise Invalid(f"{folder / _ADAPTER} names no base model; give it with --base")
    heads = [shape for name, shape in _shapes(folder) if _is_head(name)]
    changes = {"num_labels": heads[0][0]} if heads else {}
    auto = AutoModelForSequenceClassification
    model = load_model(auto, base, Path.cwd(), True, "--base", headless=bool(heads), **changes)
    try:
        model = PeftModel.from_pretrained(model, job.checkpoint).merge_and_unload()
    except Exception as error:  # PEFT checks nothing of an adapter's files
        raise Invalid(
            f"the adapter {job.checkpoint!r} does not fit {base!r}: {quote_failure(error)}; give its own base model "
            "with --base"
        ) from error
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    return _classifier(job, model, job.checkpoint if has_tokenizer else base)


def _is_head(name: str) -> bool:
    """Return whether a tensor of an adapter is the classifier's last layer."""
    parts = name.split(".")
    return parts[-1] == "weight" and any(part in ("score", "classifier", "out_proj") for part in parts)


def _classifier(job: AdoptionJob, model: Any, tokenizer: str) -> Backbone:
    """Make the score of a classifier one of its logits.

    Raises:
        Invalid: its head was never trained, or has no such label.
    """
    labels = int(model.config.num_labels)
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    heads = [(name, part) for name, part in layers if part.out_features == labels]
    if not heads:
        raise Invalid(f"model {job.checkpoint!r}: its logits are not the output of a linear layer; train a model on it")
    label = _label(job, labels)
    name, head = heads[-1]
    chosen = nn.Linear(head.in_features, 1, bias=head.bias is not None)
    chosen.weight.data = head.weight.data[label : label + 1].clone()
    if head.bias is not None:
        chosen.bias.data = head.bias.data[label : label + 1].clone()
    _check_trained(job.checkpoint, chosen.weight)
    model.set_submodule(name, chosen)
    model.config.num_labels = model.num_labels = 1
    config = TextConfig(model=tokenizer, max_length=_length(job, model.config))
    return TextClassifier(config, Path.cwd(), True, model)


def _label(job: AdoptionJob, labels: int) -> int:
    if job.label is None and labels > 1:
        raise Invalid(f"model {job.checkpoint!r} has {labels} labels; give the index of the score's with --label")
    label = job.label or 0
    if not 0 <= label < labels:
        raise Invalid(f"--label {label}: model {job.checkpoint!r} has labels 0 to {labels - 1}")
    return label


def _with_value_head(job: AdoptionJob, config: Any) -> Backbone:
    """Take the value head of a vision-language checkpoint, which transformers does not load.

    Raises:
        Invalid: there is none, or more than one, or it was never trained.
    """
    folder = Path(job.checkpoint)
    if not folder.is_dir():
        raise Invalid(f"{job.checkpoint!r}: a value head is looked for in files; download the checkpoint into a folder")
    wide = config.get_text_config().hidden_size
    found = {name: shape for name, shape in _shapes(folder) if _is_value_head(name, shape, wide)}
    names = [job.head] if job.head is not None else sorted(found)
    if len(names) != 1 or names[0] not in found:
        known = ", ".join(map(repr, sorted(found)[:5])) or "none"
        raise Invalid(
            f"model {job.checkpoint!r}: one tensor of a value head is wanted, such as 'v_head.summary.weight' or "
            f"'score.weight', of {wide} columns; found {known}; "
            + ("name it with --head" if found else "a model without one is trained with 'mor-reward train'")
        )
    weight = _tensor(folder, names[0]).reshape(-1, wide).float()
    label = _label(job, len(weight))
    _check_trained(job.checkpoint, weight[label])
    model = build(VlmConfig(model=job.checkpoint, max_length=_length(job, config)), Path.cwd(), pretrained=True)
    bias_name = names[0].removesuffix("weight") + "bias"
    bias = (
        _tensor(folder, bias_name).flatten().float() if bias_name in dict(_shapes(folder)) else torch.zeros(len(weight))
    )
    head: Any = model.head
    head.weight.data.copy_(weight[label : label + 1])
    head.bias.data.copy_(bias[label : label + 1])
    return model


def _is_value_head(name: str, shape: tuple[int, ...], wide: int) -> bool:
    """Return whether a tensor may be a value head: a few rows of hidden width, under a name that no decoder has."""
    parts = name.lower().split(".")
    named = any("head" in part or part in ("score", "reward", "value", "classifier") for part in parts)
    rows = shape[0] if len(shape) == 2 else 1
    return named and parts[-1] == "weight" and "lm_head" not in parts and shape[-1:] == (wide,) and rows <= 64


def _check_trained(checkpoint: str, weight: Tensor) -> None:
    if not weight.isfinite().all() or not weight.any():
        raise Invalid(
            f"model {checkpoint!r}: its head is zero or not finite, so it was never trained; give the checkpoint that "
            "its training wrote, or train one with 'mor-reward train'"
        )


def _length(job: AdoptionJob, config: Any) -> int:
    """Return the longest input.

    Raises:
        Invalid: the model has fewer positions.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = positions if isinstance(positions, int) and positions >= 8 else None
    if job.max_length is None:
        return _LONGEST if longest is None else min(_LONGEST, longest)
    if longest is not None and job.max_length > longest:
        raise Invalid(
            f"--max-length {job.max_length}: model {job.checkpoint!r} has {longest} positions; give at most these"
        )
    return job.max_length


def _files(folder: Path) -> list[Path]:
    """Return the weights files of a folder, and those that other trainers write beside them."""
    beside = sorted(folder.glob("*.safetensors"))
    return beside if (folder / _ADAPTER).is_file() else sorted({*weight_files(folder), *beside})


def _shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    for file in _files(folder):
        tensors, _ = read_header(file)
        yield from ((name, tuple(entry["shape"])) for name, entry in tensors.items())


def _tensor(folder: Path, name: str) -> Tensor:
    for file in _files(folder):
        tensors, _ = read_header(file)
        if name in tensors:
            try:
                with safe_open(file, framework="pt") as opened:
                    found: Tensor = opened.get_tensor(name)
            except Exception as error:  # safetensors raises its own errors, and OSError
                raise Invalid(f"{file}: {name!r} cannot be read: {describe_failure(error)}; copy it again") from error
            return found
    raise Invalid(f"{folder}: no file has the tensor {name!r}; copy the folder again")
