"""Builder of the record that issues a group."""

from __future__ import annotations

from mor_core.datafiles import Prompt
from mor_core.runs import RunSpec
from mor_core.server_clock import SERVER_CLOCK
from mor_core.wire import PromptRecord, Sampling, WeightsRef


def prompt_record(
    run: str,
    spec: RunSpec,
    prompt: Prompt,
    *,
    group_id: str,
    attempt: int,
    weights: WeightsRef,
    evaluation: bool,
) -> PromptRecord:
    """Build the record that issues a group.

    A training group is sampled by the run's settings; an evaluation group is one greedy response.
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
        objective=spec.objective,
        sampling=how,
        weights=weights,
        attempt=attempt,
        purpose="evaluation" if evaluation else "train",
        all_clients=spec.deterministic and not evaluation,
    )
