"""Sampling distribution, the same for the engine that samples and the trainer that recomputes it.

The log-probability of a sampled token is that of the distribution it was drawn from::

    z = logits in float32                       [vocab]
    z[forbidden_token_ids(...)] = -inf          never sampled, no probability mass
    z = z / temperature                         omitted if temperature is 0: the most likely token is taken
    logprob = log_softmax(z)

With ``top_p < 1`` the engine also sets tokens outside the nucleus to -inf and renormalises. A trainer cannot repeat
that from the sampled token alone, so train with ``top_p = 1`` and use a nucleus for evaluation and chat only.
Stop tokens are sampled like any other token and belong to the response.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from mor_core.special_tokens import VISION_TOKEN

_VISION_ATTRIBUTE = re.compile(r"(image|img|video|vision|tile|patch).*_token(_id)?$")
"""Attributes of a processor that name such a token, whatever it is called: Llama 4's placeholder is ``<|patch|>``."""


def response_seed(seed: int, run: str, group_id: str, index: int) -> int:
    """Return the seed of one response: 63 bits of SHA-256 over the run's seed, the run, the group and the index."""
    identity = "\x1f".join((str(seed), run, group_id, str(index)))
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") >> 1


def forbidden_token_ids(processor: Any, vocabulary_size: int) -> tuple[int, ...]:
    """Return the ids that a policy must not sample, ascending. Engine and trainer mask them before every log-softmax.

    They are the added tokens for images and videos (placeholder, row and column, start and end marks), by their text or
    by the processor's attributes, because a sampled one would be taken for an image; and every id in
    ``[len(tokenizer), vocabulary_size)``, because no tokenizer can decode it. ``vocabulary_size`` is the width of the
    logits, ``config.get_text_config().vocab_size``. Tokens that end a response are never forbidden.
    """
    tokenizer = processor.tokenizer
    forbidden = {
        token_id for token, token_id in tokenizer.get_added_vocab().items() if VISION_TOKEN.search(token) is not None
    }
    added = tokenizer.get_added_vocab()
    for name, value in vars(processor).items():
        token_id = added.get(value) if isinstance(value, str) else value
        if _VISION_ATTRIBUTE.search(name) is not None and isinstance(token_id, int):
            forbidden.add(token_id)
    forbidden.discard(tokenizer.eos_token_id)
    # A model may embed a placeholder that its head cannot predict (Mllama).
    predicted = {token_id for token_id in forbidden if token_id < vocabulary_size}
    return tuple(sorted(predicted | set(range(len(tokenizer), vocabulary_size))))
