"""Records that issue the groups of a run, each with its prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mor_core.datafiles import Prompt
from mor_core.errors import DataFileError
from mor_core.fence import Fence
from mor_core.runs import RunSpec
from mor_core.server_clock import SERVER_CLOCK
from mor_core.tasks import in_thread
from mor_core.wire import PromptRecord, Sampling, WeightsRef

from mor_trainer.groups.evaluation import Evaluations
from mor_trainer.groups.ledger import Ledger
from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.groups.traces import GroupTraces
from mor_trainer.prompts.source_prompts import SourcePrompts


class PromptRecords:
    """Records that issue the outstanding groups of one run."""

    def __init__(
        self,
        fence: Fence,
        spec: RunSpec,
        prompts: SourcePrompts,
        *,
        ledger: Ledger[ScoredGroup],
        evaluations: Evaluations,
        traces: GroupTraces,
        weights: Callable[[], WeightsRef | None],
        unread: Callable[[str, str], None],
    ) -> None:
        """``weights`` returns the version that is published now; ``unread`` is called with a group whose prompt cannot
        be read, and the reason."""
        self._fence = fence
        self._spec = spec
        self._prompts = prompts
        self._ledger = ledger
        self._evaluations = evaluations
        self._traces = traces
        self._weights = weights
        self._unread = unread

    async def find(self, group_id: str) -> tuple[PromptRecord, Prompt] | None:
        """Return record and prompt of a group; ``None`` when it has come back, or its prompt cannot be read now."""
        if (issue := self._ledger.outstanding.get(group_id)) is not None:
            read = partial(self._prompts.__getitem__, self._ledger.prompt_of(issue.number))
        elif (issue := self._evaluations.outstanding.get(group_id)) is not None:
            read = partial(self._evaluations.prompt_of, issue)
        else:
            return None
        try:
            prompt = await in_thread(read)  # the disk may be slow
        except DataFileError as error:
            self._unread(group_id, str(error))
            return None
        weights = self._weights()
        assert weights is not None, "a version is published before the first prompt"
        record = prompt_record(
            self._fence.run,
            self._spec,
            prompt,
            group_id=group_id,
            attempt=issue.attempt,
            weights=weights,
            run_attempt=self._fence.attempt,
            evaluation=group_id not in self._ledger.outstanding,
        )
        return self._traces.issued(record), prompt


def prompt_record(
    run: str,
    spec: RunSpec,
    prompt: Prompt,
    *,
    group_id: str,
    attempt: int,
    weights: WeightsRef,
    run_attempt: int,
    evaluation: bool,
) -> PromptRecord:
    """Build the record that issues a group.

    ``attempt``: times that the group was issued before; ``run_attempt``: the attempt at the run that issues it. A
    training group is sampled by the run's settings; an evaluation group is one greedy response.
    """
    sampling = spec.sampling
    if evaluation:
        how = Sampling(group_size=1, max_tokens=sampling.max_tokens, temperature=0.0, seed=spec.seed)
    else:
        how = Sampling(
            group_size=spec.group_size,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=spec.seed,
        )
    return PromptRecord(
        run=run,
        group_id=group_id,
        stamps={"issued": SERVER_CLOCK.now()},
        prompt_id=prompt.id,
        messages=prompt.messages,
        domain=prompt.domain,
        public=spec.is_public(prompt.id, evaluation=evaluation),
        objective=spec.objective,
        sampling=how,
        weights=weights,
        attempt=attempt,
        run_attempt=run_attempt,
        purpose="evaluation" if evaluation else "train",
        all_clients=spec.deterministic and not evaluation,
    )
