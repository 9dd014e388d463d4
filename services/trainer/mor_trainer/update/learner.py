"""What all ranks do together: load the model, update it, save and gather it; and how the others follow rank 0."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import structlog
import torch
from mor_core import atomic
from mor_core.datafiles import Prompt, read_prompts
from mor_core.errors import Invalid, MorError
from mor_core.runs import RunSpec
from torch import Tensor

from mor_trainer.config import WorkerSettings
from mor_trainer.model import loading, sharding
from mor_trainer.model.batching import TrainingGroup
from mor_trainer.model.encoding import EncodedPrompt
from mor_trainer.model.policy import Policy
from mor_trainer.ranks import Ranks, RanksBroken, divided
from mor_trainer.update import checkpoint, microbatch_limit
from mor_trainer.update.budget import Halved, OutOfMemory
from mor_trainer.update.step_timer import TimeShares
from mor_trainer.update.update import Updater, UpdateReport

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class StepGroup:
    """A group of a step as rank 0 tells it to all ranks."""

    prompt: int
    """Row of the prompts file."""
    prompt_tokens: int
    responses: tuple[tuple[int, ...], ...]
    engine_logprobs: tuple[tuple[float, ...], ...]
    rewards: tuple[float, ...]

    def __len__(self) -> int:
        return self.prompt_tokens + sum(map(len, self.responses))


@dataclass(frozen=True)
class Begin:
    """The order to take a run up."""

    spec: RunSpec
    run_folder: Path


def together(
    method: Callable[Concatenate[Learner, P], R],
) -> Callable[Concatenate[Learner, P], R]:
    """A method that runs on all ranks: rank 0 tells the others before it begins. Keyword arguments stay with rank 0."""

    @functools.wraps(method)
    def called(self: Learner, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            self.ranks.tell((method.__name__, args))
            return method(self, *args, **kwargs)
        except (Halved, OutOfMemory) as error:
            self._out_of_memory(error)
            raise
        except MorError:  # all ranks meet it
            raise
        except Exception as error:
            if self.ranks.size > 1 and self.ranks.leads:
                raise self._broken(error) from error
            raise

    return called


class Learner:
    """The policy of a run with its optimiser, of which each rank holds a part."""

    def __init__(
        self, settings: WorkerSettings, order: Begin, ranks: Ranks, prompts: Sequence[Prompt] | None = None
    ) -> None:
        """``prompts``: those of the run's file, where they have been read.

        Raises:
            Invalid: a rank cannot load the model, or the run has too few groups for the ranks.
        """
        self.spec, self.ranks, self._run_folder = order.spec, ranks, order.run_folder
        torch.manual_seed(self.spec.seed)
        torch.use_deterministic_algorithms(self.spec.deterministic)
        error: MorError | None = None
        try:
            _check_groups(self.spec, ranks.size)
            self.prompts = prompts or read_prompts(Path(self.spec.prompts))
            loaded = loading.load(self.spec.model)
        except MorError as found:
            error = found
        except Exception as found:
            error = Invalid(f"{type(found).__name__}: {found}")
        ranks.agree(error)
        self.policy = Policy(
            *loaded,
            self.spec,
            ranks=ranks,
            autocast=loading.autocast_dtype(settings.precision, ranks.device.type),
            cache_bytes=settings.feature_cache_bytes,
        )
        self.updater = Updater(self.policy, self.spec, ranks)
        if ranks.size > 1:
            self.updater.budget.tokens = microbatch_limit.remembered(self._run_folder, self.spec.micro_batch_tokens)

    @classmethod
    def lead(
        cls, settings: WorkerSettings, spec: RunSpec, run_folder: Path, ranks: Ranks, prompts: Sequence[Prompt]
    ) -> Learner:
        """Take a run up, on all ranks."""
        order = Begin(spec, run_folder)
        ranks.tell(order)
        return cls(settings, order, ranks, prompts)

    # --- on all ranks -------------------------------------------------------------------------------------------

    @together
    def update(self, groups: Sequence[StepGroup], step: int, *, shares: TimeShares | None = None) -> UpdateReport:
        """Train on the groups of a step; see ``Updater.step``. Rank 0 hears whether a rank was asked to end."""
        size = len(groups) // self.spec.optimiser.updates_per_step
        own = {
            first + index
            for first in range(0, len(groups), size)
            for index in divided([len(group) for group in groups[first : first + size]], self.ranks.size)[
                self.ranks.rank
            ]
        }
        shares = shares or TimeShares()
        with shares.measure("processing"):
            training = [self._training_group(group, index in own) for index, group in enumerate(groups)]
        report = self.updater.step(training, step, shares)
        ending = any(self.ranks.gather(self.ranks.ending))
        self.ranks.ending |= ending and self.ranks.leads
        return report

    @together
    def save(self, state: checkpoint.LoopState) -> Path:
        """Write a checkpoint."""
        return checkpoint.save(
            self._run_folder,
            state,
            self.policy.trainable,
            self.updater.optimiser,
            keep=self.spec.keep_checkpoints,
            ranks=self.ranks,
        )

    @together
    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        checkpoint.restore(folder, self.policy.trainable, self.updater.optimiser, self.ranks)

    @together
    def gather(self) -> Mapping[str, Tensor]:
        """The trained tensors whole, on rank 0: the parameters themselves in a single process, else copies in main
        memory. One tensor at a time is whole on the other ranks, which get nothing."""
        trainable = self.policy.trainable
        if self.ranks.size == 1:
            return trainable
        gathered: dict[str, Tensor] = {}
        for name, parameter in trainable.items():
            tensor = sharding.full(parameter.detach())
            if self.ranks.leads:
                gathered[name] = tensor.cpu()
        return gathered

    # --- on rank 0 ----------------------------------------------------------------------------------------------

    def encoded(self, prompt: Prompt) -> EncodedPrompt:
        """A prompt as the model takes it; in a single process its image features are computed too, for the update."""
        if self.ranks.size == 1:
            return self.policy.prepare(prompt.messages, prompt.images).encoded
        return self.policy.encode(prompt.messages, prompt.images)

    def export(self, target: Path) -> None:
        """The aligned model as a checkpoint like any other: model (adapters merged in) and processor."""
        trained = self.gather()
        model, processor = loading.load(self.spec.model)
        adapter = loading.tune(model, self.spec.tuning, self.spec.freeze_vision)
        missing = model.load_state_dict(dict(trained), strict=False).unexpected_keys
        assert not missing, missing
        with atomic.folder(target) as folder:
            (model if adapter is None else adapter.merge_and_unload()).save_pretrained(folder)
            processor.save_pretrained(folder)

    # --- parts --------------------------------------------------------------------------------------------------

    def _training_group(self, group: StepGroup, own: bool) -> TrainingGroup:
        prompt = self.prompts[group.prompt]
        prepared = self.policy.prepare(prompt.messages, prompt.images) if own else None
        return TrainingGroup(prepared, group.responses, group.engine_logprobs, group.rewards)

    def _out_of_memory(self, error: Halved | OutOfMemory) -> None:
        """The others wait in the middle of a step, so this process ends, and with it all; the next attempt knows."""
        if self.ranks.size == 1:
            return
        again = isinstance(error, Halved)
        if isinstance(error, Halved):
            microbatch_limit.remember(self._run_folder, error.tokens)
        self.ranks.fail(str(error), again=again)
        raise RanksBroken(str(error), again=again) from error

    def _broken(self, error: Exception) -> RanksBroken:
        """What ended a common task: what another rank left word of, or what rank 0 met."""
        reason, again = self.ranks.failure() or (f"{type(error).__name__}: {error}", _connection_lost(error))
        return RanksBroken(reason, again=again)


def follow(settings: WorkerSettings, ranks: Ranks) -> None:
    """What every rank but the first does: whatever rank 0 tells, until it says that the work is over.

    Raises:
        Exception: this rank cannot go on; all must be started again.
    """
    learner: Learner | None = None
    while (order := ranks.hear()) is not None:
        try:
            if isinstance(order, Begin):
                learner = None  # frees the memory of the run before
                learner = Learner(settings, order, ranks)
            else:
                name, arguments = order
                getattr(learner, name)(*arguments)
        except RanksBroken:
            raise
        except MorError as error:
            log.info("rank 0 reports it", rank=ranks.rank, error=str(error))
        except Exception as error:
            ranks.fail(f"{type(error).__name__}: {error}", again=False)
            raise


def _check_groups(spec: RunSpec, ranks: int) -> None:
    groups = spec.groups_per_step // spec.optimiser.updates_per_step
    if groups < ranks:
        raise Invalid(
            f"groups_per_step={spec.groups_per_step} in optimiser.updates_per_step={spec.optimiser.updates_per_step} "
            f"parts are {groups} groups for an update, too few for {ranks} ranks; raise groups_per_step or start fewer "
            "ranks"
        )


def _connection_lost(error: Exception) -> bool:
    """Whether another process ended or was out of reach, as gloo and NCCL tell it."""
    from torch import distributed

    return isinstance(error, distributed.DistBackendError | distributed.DistNetworkError) or "gloo" in str(error)
