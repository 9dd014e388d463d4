"""From a scored group to one that is trained on."""

from __future__ import annotations

from mor_core.processed_prompt import ProcessedPrompt
from mor_core.runs import RunSpec

from mor_trainer.algorithm.overlong import is_masked, shape_rewards
from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.model.micro_batches import TrainingGroup
from mor_trainer.model.prompt_processor import PromptMismatch, check_same_prompt


def training_group(
    group: ScoredGroup, index: int, prompt: ProcessedPrompt, spec: RunSpec, *, vocabulary: int
) -> TrainingGroup:
    """Return a group as the update takes it.

    Args:
        index: the prompt among those of the run.
        prompt: it, as the trainer processes it.
        vocabulary: number of token ids of the model.

    Raises:
        PromptMismatch: engine and trainer did not see the same prompt, or a response is none of this model.
    """
    record, tokens = group.record, group.tokens
    check_same_prompt(prompt, record.rollout, tokens)
    lengths = [len(ids) for ids in tokens.response_token_ids]
    if not min(lengths):
        raise PromptMismatch("a response without tokens; each has at least the token that ends it")
    if max(lengths) > spec.sampling.max_tokens:
        raise PromptMismatch(f"a response of {max(lengths)} tokens; max_tokens is {spec.sampling.max_tokens}")
    largest = max(max(ids) for ids in tokens.response_token_ids)
    if largest >= vocabulary:
        raise PromptMismatch(f"a response has token {largest}; the model has {vocabulary} tokens")
    overlong = spec.algorithm.overlong
    masked = [is_masked(reason, overlong) for reason in record.rollout.finish_reasons]
    return TrainingGroup(
        index,
        len(prompt.token_ids),
        tuple(() if out else ids for ids, out in zip(tokens.response_token_ids, masked, strict=True)),
        tuple(() if out else values for values, out in zip(tokens.response_logprobs, masked, strict=True)),
        shape_rewards(record.rewards, lengths, spec.sampling.max_tokens, overlong),
        on_policy=group.staleness == 0,
    )
