"""Policy: a base model with LoRA on its decoder, with log-probabilities and samples in this process.

Image encoder and connector are frozen, so a picture's tokens are computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from three_domains.assembly import END, IMAGE
from three_domains.tuning import encoder_features, image_prefix
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, Idefics3ForConditionalGeneration, Idefics3Processor

from quality.federated.adapters import Adapter

RANK = 16
_LORA = LoraConfig(
    r=RANK,
    lora_alpha=2 * RANK,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)
MAX_TOKENS = 24
"""Longest response, tokens, as in the other experiments."""
_SEEN = 512
"""Pictures that are encoded before their patches are joined to tokens, which take a sixth of the memory."""
_ANSWERED = 64
"""Responses that are sampled together."""


@dataclass(frozen=True)
class Asked:
    """Encoded question about one picture."""

    picture: Path
    ids: tuple[int, ...]
    """Tokens of the prompt behind the picture."""


@dataclass(frozen=True)
class Response:
    """Encoded response to a question; its last token is the end token unless it was cut."""

    asked: Asked
    ids: tuple[int, ...]


class Policy:
    """The base model and one adapter, which is replaced in place."""

    def __init__(self, base: Path) -> None:
        self._processor = Idefics3Processor.from_pretrained(base)
        self._model: Any = Idefics3ForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
        self._model.requires_grad_(False)
        torch.manual_seed(0)
        inject_adapter_in_model(_LORA, self._model.model.text_model)
        self._model.eval()
        self.start = self.adapter()
        """Adapter that changes nothing: its second matrices are zero."""
        self._end = self._processor.tokenizer.convert_tokens_to_ids(END)
        self._image = self._processor.tokenizer.convert_tokens_to_ids(IMAGE)
        self._prefix: list[int] = []
        self._features: dict[Path, Float[Tensor, "tokens width"]] = {}

    def parameters(self) -> dict[str, Tensor]:
        """Return the trained matrices."""
        return {name: value for name, value in self._model.named_parameters() if value.requires_grad}

    def adapter(self) -> Adapter:
        return {name: value.detach().clone() for name, value in self.parameters().items()}

    def load(self, adapter: Adapter) -> None:
        with torch.no_grad():
            for name, value in self.parameters().items():
                value.copy_(adapter[name])

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Turn the adapter off: the policy is the base model."""
        layers = [module for module in self._model.modules() if isinstance(module, LoraLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def look(self, files: Iterable[Path]) -> None:
        """Compute the tokens of pictures that are not known yet."""
        new = [file for file in dict.fromkeys(files) if file not in self._features]
        for start in range(0, len(new), _SEEN):
            some = new[start : start + _SEEN]
            with torch.no_grad():
                seen = self._model.model.connector(encoder_features(self._model, self._processor, some))
            self._features.update(zip(some, seen, strict=True))

    def ask(self, folder: Path, row: dict[str, Any]) -> Asked:
        """Encode the prompt of a row of a data file in ``folder``."""
        if not self._prefix:
            self._prefix = image_prefix(row, self._processor)
        text = self._processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        return Asked(folder / row["images"][0], tuple(self._processor.tokenizer.encode(text.split(IMAGE)[1])))

    def respond(self, asked: Asked, text: str) -> Response:
        """Encode a response."""
        return Response(asked, tuple(self._processor.tokenizer.encode(text + END)))

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self._processor.tokenizer.encode(text)
        return ids

    def log_probs(
        self, responses: Sequence[Response]
    ) -> tuple[Float[Tensor, "responses tokens"], Bool[Tensor, "responses tokens"]]:
        """Compute the log-probability of each token of the responses, padded with 0, and the mask of the tokens.

        Equal responses to a question, of which groups have many, are computed once.
        """
        different = {response: number for number, response in enumerate(dict.fromkeys(responses))}
        found, mask = self._log_probs(list(different))
        rows = torch.tensor([different[response] for response in responses])
        return found[rows], mask[rows]

    def _log_probs(
        self, responses: Sequence[Response]
    ) -> tuple[Float[Tensor, "responses tokens"], Bool[Tensor, "responses tokens"]]:
        begin = [len(self._prefix) + len(response.asked.ids) for response in responses]
        rows = [torch.tensor([*self._prefix, *one.asked.ids, *one.ids]) for one in responses]
        lengths = torch.tensor([len(row) for row in rows])
        ids = pad_sequence(rows, batch_first=True, padding_value=self._end)
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        embedded = self._embedded(ids, [response.asked for response in responses])
        hidden = self._model.model.text_model(
            inputs_embeds=embedded, attention_mask=mask.long(), use_cache=False
        ).last_hidden_state
        # Only the responses are predicted, so only they go through the head.
        spans = [
            hidden[row, first - 1 : length - 1] for row, (first, length) in enumerate(zip(begin, lengths, strict=True))
        ]
        scores = torch.log_softmax(self._model.lm_head(torch.cat(spans)).float(), dim=-1)
        targets = torch.cat([torch.tensor(response.ids) for response in responses])
        flat = scores.gather(1, targets[:, None])[:, 0]
        found = torch.split(flat, [len(response.ids) for response in responses])
        kept = torch.arange(max(map(len, found)))[None] < torch.tensor([len(one) for one in found])[:, None]
        return pad_sequence(list(found), batch_first=True), kept

    def choice(self, asked: Sequence[Asked], options: Sequence[int]) -> Float[Tensor, "asked options"]:
        """Compute the logits of a few next tokens behind each prompt."""
        rows = [torch.tensor([*self._prefix, *one.ids]) for one in asked]
        lengths = torch.tensor([len(row) for row in rows])
        ids = pad_sequence(rows, batch_first=True, padding_value=self._end)
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        hidden = self._model.model.text_model(
            inputs_embeds=self._embedded(ids, asked), attention_mask=mask.long(), use_cache=False
        ).last_hidden_state
        logits: Tensor = self._model.lm_head(hidden[torch.arange(len(rows)), lengths - 1]).float()
        return logits[:, list(options)]

    @torch.no_grad()
    def sample(self, asked: Sequence[Asked], seed: int | None = None) -> list[Response]:
        """Draw one response to each question at temperature 1, or the most probable tokens without a seed."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        found: list[Response] = []
        for start in range(0, len(asked), _ANSWERED):
            found += self._sample(asked[start : start + _ANSWERED], generator)
        return found

    def text(self, response: Response) -> str:
        text: str = self._processor.tokenizer.decode(response.ids, skip_special_tokens=True)
        return text

    def _sample(self, asked: Sequence[Asked], generator: torch.Generator | None) -> list[Response]:
        # A question that is asked several times is read once.
        different = {one: number for number, one in enumerate(dict.fromkeys(asked))}
        copies = torch.tensor([different[one] for one in asked])
        rows = [[*self._prefix, *one.ids] for one in different]
        longest = max(map(len, rows))
        # Padding stands on the left, so that all responses grow at the same place; positions leave it out.
        ids = torch.tensor([[self._end] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        embedded, cache = self._embedded(ids, list(different)), DynamicCache()
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        drawn: list[Tensor] = []
        ended = torch.zeros(len(asked), dtype=torch.bool)
        while len(drawn) < MAX_TOKENS and not ended.all():
            out = self._model.model.text_model(
                inputs_embeds=embedded,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            logits = self._model.lm_head(out.last_hidden_state[:, -1]).float()
            if not drawn:
                cache.batch_select_indices(copies)
                logits, mask, positions = logits[copies], mask[copies], positions[copies]
            logits[:, self._image] = -torch.inf  # a placeholder in a response would be taken for a picture
            if generator is None:
                token = logits.argmax(dim=-1)
            else:
                token = torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator)[:, 0]
            drawn.append(torch.where(ended, self._end, token))
            ended |= token == self._end
            embedded = self._model.model.text_model.embed_tokens(token)[:, None]
            mask = torch.cat([mask, torch.ones(len(asked), 1, dtype=mask.dtype)], dim=1)
            positions = positions[:, -1:] + 1
        table = torch.stack(drawn, dim=1).tolist()
        return [Response(one, self._cut(row)) for one, row in zip(asked, table, strict=True)]

    def _cut(self, ids: list[int]) -> tuple[int, ...]:
        return tuple(ids[: ids.index(self._end) + 1] if self._end in ids else ids)

    def _embedded(self, ids: Tensor, asked: Sequence[Asked]) -> Float[Tensor, "asked tokens width"]:
        """Embed tokens, with the picture's features in the place of its placeholders."""
        embedded = self._model.model.text_model.embed_tokens(ids)
        self.look([one.picture for one in asked])
        pictures = torch.stack([self._features[one.picture] for one in asked])
        places = (ids == self._image)[:, :, None]
        found: Tensor = embedded.masked_scatter(places, pictures.to(embedded.dtype))
        return found
