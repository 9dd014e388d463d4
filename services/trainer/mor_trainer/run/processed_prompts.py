"""Prompts of a run as the trainer processes them, and those that it cannot."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from mor_core.errors import DataFileError
from mor_core.processed_prompt import ProcessedPrompt

from mor_trainer.model.prompt_processor import UnusablePrompt
from mor_trainer.prompts.source_prompts import SourcePrompts
from mor_trainer.update.learner import Learner


class ProcessedPrompts:
    """Processed prompts of one run. The learner keeps them; one that cannot be processed is not tried again."""

    def __init__(self, prompts: SourcePrompts, learner: Learner) -> None:
        self._prompts = prompts
        self._learner = learner
        self._unusable: dict[int, str] = {}
        """Reasons by the places of prompts, of which each may have taken all its time."""
        self.expected: deque[int] = deque()
        """Places of prompts to process ahead."""
        self._processed: set[int] = set()
        """Prompts of groups under way that are processed, or that cannot be."""

    def expect(self, indices: Iterable[int]) -> None:
        """Name the prompts of all groups under way, to process those ahead that are not processed yet."""
        under_way = dict.fromkeys(indices)
        self._processed.intersection_update(under_way)
        self.expected = deque(index for index in under_way if index not in self._processed)

    def process_expected(self) -> None:
        """Process one expected prompt, if there is one. The group of one that cannot be is dropped on return."""
        if self.expected:
            with suppress(DataFileError, UnusablePrompt):
                self[self.expected.popleft()]

    def images(self, index: int) -> dict[str, bytes]:
        """Return the encoded pictures of a prompt; none where it cannot be read now."""
        with suppress(DataFileError):
            return self._prompts[index].images
        return {}

    def forget_failures(self) -> None:
        """Try every prompt again: an operator has a dropped group issued once more."""
        self._unusable.clear()

    def __getitem__(self, index: int) -> ProcessedPrompt:
        """Process a prompt.

        Raises:
            DataFileError: it cannot be read.
            UnusablePrompt: it cannot be processed, now or at an earlier call, or no response to it fits a micro-batch.
        """
        self._processed.add(index)
        if (reason := self._unusable.get(index)) is not None:
            raise UnusablePrompt(reason)
        prompt = self._prompts[index]
        try:
            processed = self._learner.process_prompt(prompt)
            self._check_length(prompt.id, len(processed.token_ids))
        except UnusablePrompt as error:
            self._unusable[index] = str(error)
            raise
        return processed

    def _check_length(self, name: str, tokens: int) -> None:
        spec = self._learner.spec
        if tokens + spec.sampling.max_tokens - 1 > spec.micro_batch_tokens:
            raise UnusablePrompt(
                f"prompt {name!r} has {tokens} tokens and with a response of sampling.max_tokens="
                f"{spec.sampling.max_tokens} does not fit micro_batch_tokens={spec.micro_batch_tokens}; raise "
                "micro_batch_tokens or use shorter prompts"
            )
