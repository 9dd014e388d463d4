"""Independent recomputation of log-probabilities with transformers, and builders of prompts and weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mor_core import images as guarded
from mor_core.sampling import forbidden_token_ids
from mor_core.vision import encode_prompt, load_processor
from mor_core.wire import ImagePart, Message, TextPart
from mor_rollout.engines.protocol import PromptInput, SampledResponse
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

TEXT = "What is in the picture? There is a blue square on the left, and 3 red circles. How many red circles do you see?"


def picture(seed: int) -> bytes:
    """Return an encoded picture, a different one for each seed."""
    numbers = np.random.default_rng(seed)
    image = Image.new("RGB", (56, 56), tuple(int(v) for v in numbers.integers(0, 255, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        x, y = (int(v) for v in numbers.integers(0, 40, 2))
        draw.rectangle([x, y, x + 16, y + 16], fill=tuple(int(v) for v in numbers.integers(0, 255, 3)))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def messages(*pictures: bytes, text: str = TEXT) -> tuple[Message, ...]:
    images = tuple(ImagePart.of(guarded.sha256(content)) for content in pictures)
    return (Message(role="user", content=(*images, TextPart(text=text))),)


def prompt_input(*pictures: bytes, text: str = TEXT) -> PromptInput:
    decoded = {guarded.sha256(content): guarded.decode(content) for content in pictures}
    return PromptInput(messages(*pictures, text=text), decoded)


def base_tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def moved(tensors: dict[str, Tensor], seed: int, only: str = "", scale: float = 0.1) -> dict[str, Tensor]:
    """Return the tensors whose names contain ``only``, plus noise."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + scale * torch.randn(tensor.shape, generator=generator)
        for name, tensor in tensors.items()
        if only in name
    }


def make_adapter(
    model_folder: Path, folder: Path, seed: int, targets: str = r".*text_model.*(q_proj|v_proj|down_proj)"
) -> Path:
    """Save a PEFT adapter of rank 4 with a clear effect."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model: Any = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(folder)
    return folder


class Reference:
    """transformers' own forward pass on a checkpoint whose tensors can be replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processor = load_processor(str(folder))
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.forbidden = list(forbidden_token_ids(self.processor, self.model.config.get_text_config().vocab_size))

    def use(self, replaced: dict[str, Tensor]) -> None:
        missing, unexpected = self.model.load_state_dict({**base_tensors(self.folder), **replaced}, strict=False)
        assert not unexpected
        assert set(missing) <= {"lm_head.weight"}

    def adapted(self, adapter: Path) -> Reference:
        """Return another reference of the same checkpoint, with a PEFT adapter that is applied and not merged."""
        from peft import PeftModel

        reference = Reference(self.folder)
        reference.model = PeftModel.from_pretrained(reference.model, str(adapter)).eval()
        return reference

    def logprobs(self, prompt: PromptInput, response: SampledResponse, temperature: float = 1.0) -> Tensor:
        """Compute the log-probability of each sampled token by the rule of ``mor_core.sampling``, ``[token]``."""
        inputs = encode_prompt(self.processor, prompt.messages, prompt.images)
        length = inputs["input_ids"].shape[1]
        sampled = torch.tensor([response.token_ids])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], sampled], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(sampled)], 1)
        with torch.no_grad():
            logits = self.model(**inputs).logits[0, length - 1 : -1].float()
        logits[:, self.forbidden] = float("-inf")
        return torch.log_softmax(logits / (temperature or 1.0), -1).gather(1, sampled[0][:, None])[:, 0]

    def distance(self, prompt: PromptInput, response: SampledResponse, temperature: float = 1.0) -> float:
        """Return the largest difference from the response's own log-probabilities, nats."""
        own = torch.tensor(response.logprobs)
        return float((self.logprobs(prompt, response, temperature) - own).abs().max())
