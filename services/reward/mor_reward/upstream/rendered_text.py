"""Text that an upstream reads: a conversation with its response, in the reward model's chat template or plain."""

from __future__ import annotations

from typing import Any

from mor_core.chat_template import chat_text
from mor_core.errors import Invalid
from mor_core.failures import quote_failure
from mor_core.wire import Message

from mor_reward.upstream.upstream_protocol import Render

_TITLES = {"system": "System", "user": "User", "assistant": "Assistant"}


def plain_text(messages: tuple[Message, ...], response: str) -> str:
    """Return a conversation with ``response`` as turns under their roles' names."""
    turns = [(_TITLES[message.role], message.text) for message in messages] + [(_TITLES["assistant"], response)]
    return "\n\n".join(f"{title}: {text}" for title, text in turns)


def in_template(checkpoint: str, *, own_tokens: bool) -> Render:
    """Return the rendering in the chat template of a checkpoint: a folder, or a name of the hub.

    ``own_tokens``: the upstream adds the tokenizer's special tokens to a text; the first is left out of the template
    where the tokenizer adds it.

    Raises:
        Invalid: the tokenizer cannot be loaded, or has no template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:  # the code of a tokenizer may raise anything
        raise Invalid(
            f"--template {checkpoint}: its tokenizer cannot be loaded ({quote_failure(error)}); give the folder or hub "
            "name of the reward model's checkpoint"
        ) from error
    if not tokenizer.chat_template:
        raise Invalid(
            f"--template {checkpoint}: its tokenizer has no chat template; leave --template out for plain text"
        )
    adds_first = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    begin = str(tokenizer.bos_token) if own_tokens and adds_first else ""

    def render(messages: tuple[Message, ...], response: str) -> str:
        answered = (*messages, Message(role="assistant", content=response))
        text = chat_text(tokenizer, answered, cue=False, parts=False)
        return text.removeprefix(begin)

    return render
