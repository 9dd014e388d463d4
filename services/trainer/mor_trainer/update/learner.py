"""Work that all ranks do together: load the model, update it, save and gather it.

Rank 0 calls a ``Learner``, whose methods under ``on_all_ranks`` first send the call to the other ranks. Those run
``follow_leader``, which makes the same calls. The way of a group through here is in ``model/micro_batches.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import structlog
import torch
from mor_core.datafiles import Prompt
from mor_core.errors import DataFileError, Invalid, MorError
from mor_core.failures import describe_failure
from mor_core.processed_prompt import ProcessedPrompt
from mor_core.runs import RunSpec
from torch import Tensor

from mor_trainer.config import WorkerSettings
from mor_trainer.model import loading, sharding
from mor_trainer.model.micro_batches import TrainingGroup
from mor_trainer.model.policy import Policy
from mor_trainer.model.prompt_processor import UnusablePrompt
from mor_trainer.model.standby import StandbyModel
from mor_trainer.prompts.source_prompts import SourcePlace, SourcePrompts
from mor_trainer.ranks import Ranks, RanksBroken, balanced_partition
from mor_trainer.update import loop_checkpoint, microbatch_limit
from mor_trainer.update.budget import OutOfMemory, RetryWithSmallerBatch
from mor_trainer.update.checkpoint_checksums import check_checksums
from mor_trainer.update.model_export import write_aligned
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.update.updater import Updater, UpdateReport

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class PreloadModel:
    """Order to hold the model of a run under way ready, see ``StandbyModel``."""

    checkpoint: str


@dataclass(frozen=True)
class StartRun:
    """Order to load the model of a run."""

    spec: RunSpec
    run_folder: Path
    prompts: tuple[SourcePlace, ...]
    """Files of the run's prompts, whose indexes rank 0 has built."""
    staging: Path | None
    """Folder of the attempt, through which it writes into the run's folder; ``None`` outside an attempt."""


class GroupsUnusable(MorError):
    """Groups of a step whose prompts a rank cannot read or process; the step can be made without them."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        """``reasons``: by the places of the groups in the step."""
        super().__init__("; ".join(reasons.values()))
        self.reasons = reasons


def on_all_ranks(
    method: Callable[Concatenate[Learner, P], R],
) -> Callable[Concatenate[Learner, P], R]:
    """Make a method run on all ranks: rank 0 sends the call to the others first. Keyword arguments stay on rank 0."""

    @functools.wraps(method)
    def called(self: Learner, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            self.ranks.broadcast((method.__name__, args))
            return method(self, *args, **kwargs)
        except (RetryWithSmallerBatch, OutOfMemory) as error:
            self._out_of_memory(error)
            raise
        except MorError:  # raised on all ranks
            raise
        except Exception as error:
            if self.ranks.size > 1 and self.ranks.leads:
                raise self._broken(error) from error
            raise

    return called


class Learner:
    """The policy of a run with its optimiser, of which each rank holds a part."""

    def __init__(
        self,
        settings: WorkerSettings,
        order: StartRun,
        ranks: Ranks,
        prompts: SourcePrompts | None = None,
        *,
        standby: StandbyModel,
    ) -> None:
        """Load the model on this rank. ``prompts``: those of the run, where they are open.

        Raises:
            Invalid: a rank cannot load the model, or the run has too few groups for the ranks.
        """
        self.spec, self.ranks, self._run_folder, self._staging = order.spec, ranks, order.run_folder, order.staging
        torch.manual_seed(self.spec.seed)
        torch.use_deterministic_algorithms(self.spec.deterministic)
        error: MorError | None = None
        try:
            _check_groups(self.spec, ranks.size)
            self.prompts = prompts or SourcePrompts.at(order.prompts)
            loaded = standby.take(self.spec.model)
        except MorError as found:
            error = found
        except FileNotFoundError:
            error = Invalid(
                f"rank {ranks.rank} finds no index of the prompts at {order.prompts[0][1].absolute()}; "
                "set MOR_INDEX_DIR to a folder that all ranks share"
            )
        except Exception as found:
            error = Invalid(describe_failure(found))
        ranks.raise_first(error)
        self.policy = Policy(
            *loaded,
            self.spec,
            ranks=ranks,
            autocast=loading.autocast_dtype(settings.precision, ranks.device.type),
            cache_bytes=settings.feature_cache_bytes,
            encode_timeout_s=settings.encode_timeout_s,
        )
        self.updater = Updater(self.policy, self.spec, ranks)
        if ranks.size > 1:
            self.updater.budget.tokens = microbatch_limit.read_limit(self._run_folder, self.spec.micro_batch_tokens)

    @classmethod
    def lead(
        cls,
        settings: WorkerSettings,
        spec: RunSpec,
        run_folder: Path,
        ranks: Ranks,
        prompts: SourcePrompts,
        *,
        staging: Path | None = None,
        standby: StandbyModel | None = None,
    ) -> Learner:
        """Load the model of a run on all ranks."""
        order = StartRun(spec, run_folder, prompts.places, staging)
        ranks.broadcast(order)
        return cls(settings, order, ranks, prompts, standby=standby or StandbyModel())

    # --- on all ranks -------------------------------------------------------------------------------------------

    @on_all_ranks
    def update(self, groups: Sequence[TrainingGroup], step: int, *, timer: StepTimer | None = None) -> UpdateReport:
        """Train on the groups of a step; see ``Updater.step``. Sets ``ending`` on rank 0 where any rank has it set.

        Raises:
            GroupsUnusable: prompts of the step cannot be read or processed; no rank has begun with the update.
        """
        size = len(groups) // self.spec.optimiser.updates_per_step
        own = {
            first + index
            for first in range(0, len(groups), size)
            for index in balanced_partition([len(group) for group in groups[first : first + size]], self.ranks.size)[
                self.ranks.rank
            ]
        }
        timer = timer or StepTimer()
        with timer.measure("processing"):
            prepared = self._all_prepared(groups, own)
        report = self.updater.step(prepared, step, timer)
        ending = any(self.ranks.gather(self.ranks.ending))
        self.ranks.ending |= ending and self.ranks.leads
        return report

    @on_all_ranks
    def save(self, state: loop_checkpoint.LoopState) -> Path:
        """Write a checkpoint.

        Raises:
            DiskFull: there is no room for it, on the disk of any rank.
        """
        return loop_checkpoint.save(
            self._run_folder,
            state,
            self.policy.trainable,
            self.updater.optimiser,
            keep=self.spec.keep_checkpoints,
            ranks=self.ranks,
            staging=self._staging,
        )

    @on_all_ranks
    def check_checkpoint(self, folder: Path) -> None:
        """Compare a checkpoint with its checksums."""
        check_checksums(folder, self.ranks)

    @on_all_ranks
    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        loop_checkpoint.restore(folder, self.policy.trainable, self.updater.optimiser, self.ranks)

    @on_all_ranks
    def gather(self) -> Mapping[str, Tensor]:
        """Gather the trained tensors on rank 0: the parameters in a single process, else copies in main memory.

        One tensor at a time is whole on the other ranks, which return nothing.
        """
        trainable = self.policy.trainable
        if self.ranks.size == 1:
            return trainable
        gathered: dict[str, Tensor] = {}
        for name, parameter in trainable.items():
            tensor = sharding.full_tensor(parameter.detach())
            if self.ranks.leads:
                gathered[name] = tensor.cpu()
        return gathered

    # --- on rank 0 ----------------------------------------------------------------------------------------------

    def checkpoint_bytes(self) -> int:
        """Return the bytes of a checkpoint's tensors."""
        moments = (value for state in self.updater.optimiser.state.values() for value in state.values())
        return sum(tensor.nbytes for tensor in (*self.policy.trainable.values(), *moments))

    def model_bytes(self) -> int:
        """Return the bytes of the exported model's tensors."""
        return sum(parameter.nbytes for parameter in self.policy.model.parameters())

    def process_prompt(self, prompt: Prompt) -> ProcessedPrompt:
        """Process a prompt; in a single process, compute its image features for the update too.

        Raises:
            UnusablePrompt: it cannot be processed.
        """
        if self.ranks.size == 1:
            return self.policy.prepare(prompt.messages, prompt.images).processed
        return self.policy.process_prompt(prompt.messages, prompt.images)

    def export(self, target: Path) -> None:
        """Write the aligned model as a checkpoint like any other: model (adapters merged in) and processor."""
        write_aligned(self.spec, self.gather(), target, self._staging)

    # --- parts --------------------------------------------------------------------------------------------------

    def _all_prepared(self, groups: Sequence[TrainingGroup], own: Collection[int]) -> list[TrainingGroup]:
        """Prepare the prompts of this rank's ``own`` groups, or raise on all ranks where one cannot."""
        prepared = list(groups)
        unusable: dict[int, str] = {}
        error: MorError | None = None
        try:
            for index in own:
                try:
                    prepared[index] = self._prepared(groups[index])
                except (DataFileError, UnusablePrompt) as reason:
                    unusable[index] = str(reason)
        except MorError as found:
            error = found
        self.ranks.raise_first(error)
        if everywhere := {index: reason for found in self.ranks.gather(unusable) for index, reason in found.items()}:
            raise GroupsUnusable(everywhere)
        return prepared

    def _prepared(self, group: TrainingGroup) -> TrainingGroup:
        prompt = self.prompts[group.prompt]
        return replace(group, prepared=self.policy.prepare(prompt.messages, prompt.images))

    def _out_of_memory(self, error: RetryWithSmallerBatch | OutOfMemory) -> None:
        """End this rank, and with it all, which wait in the middle of a step; the next attempt reads the new limit.

        Raises:
            RanksBroken: there are other ranks.
        """
        if self.ranks.size == 1:
            return
        retryable = isinstance(error, RetryWithSmallerBatch)
        if isinstance(error, RetryWithSmallerBatch):
            try:
                microbatch_limit.write_limit(self._run_folder, error.tokens, self._staging)
            except OSError as failure:  # the next attempt finds the limit out again
                log.warning("the limit of micro-batches is not kept", error=describe_failure(failure))
        self.ranks.report_failure(str(error), retryable=retryable)
        raise RanksBroken(str(error), retryable=retryable) from error

    def _broken(self, error: Exception) -> RanksBroken:
        """Return the failure that another rank reported, or else ``error`` of rank 0."""
        reason, retryable = self.ranks.reported_failure() or (
            describe_failure(error),
            _connection_lost(error),
        )
        return RanksBroken(reason, retryable=retryable)


def follow_leader(settings: WorkerSettings, ranks: Ranks) -> None:
    """Carry out the orders of rank 0 on another rank until rank 0 ends the work.

    Raises:
        Exception: this rank cannot continue; all must be started again.
    """
    learner: Learner | None = None
    standby = StandbyModel()
    while (order := ranks.receive()) is not None:
        try:
            if isinstance(order, StartRun):
                learner = None  # frees the memory of the run before
                learner = Learner(settings, order, ranks, standby=standby)
            elif isinstance(order, PreloadModel):
                learner = None
                standby.prepare(order.checkpoint)
            else:
                name, arguments = order
                getattr(learner, name)(*arguments)
        except RanksBroken:
            raise
        except MorError as error:
            log.info("rank 0 reports this error", rank=ranks.rank, error=str(error))
        except Exception as error:
            ranks.report_failure(describe_failure(error), retryable=False)
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
    """Return whether gloo or NCCL reports that another process ended or is unreachable."""
    from torch import distributed

    return isinstance(error, distributed.DistBackendError | distributed.DistNetworkError) or "gloo" in str(error)
