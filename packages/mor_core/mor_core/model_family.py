"""Check, without its weights, that a checkpoint is of a family that MoR can train and serve.

It needs transformers, and seconds. What only a pass with the weights shows, the trainer tries when it loads them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mor_core import images
from mor_core.errors import Invalid
from mor_core.failures import describe_failure, quote_failure
from mor_core.folder_links import check_checkpoint
from mor_core.vision import encode_prompt, load_processor
from mor_core.weight_files import check_stored_weights
from mor_core.wire import ImagePart, Message, TextPart

_GENERATION = "generation_config.json"
_LAYER = re.compile(r"\.\d+\.")
_KNOWN = "docs/model-families.md lists the families that are known to work"


def check_family(model: str) -> Any:
    """Check that a checkpoint's class can be trained, and that its processor takes a picture. Return the processor.

    Raises:
        Invalid: it is of another kind, with the reason.
    """
    made = model_class(model)
    processor = load_processor(model)
    import torch
    from transformers import AutoConfig

    try:
        with torch.device("meta"):
            skeleton = made(AutoConfig.from_pretrained(model, trust_remote_code=False))
    except Exception as error:  # the code of a family may raise anything
        raise _refusal(model, made, f"its configuration makes no model ({quote_failure(error)})") from error
    check_parts(model, skeleton)
    rows, last = skeleton.get_input_embeddings().weight.shape[0], max(processor.tokenizer.get_vocab().values())
    if last >= rows:
        raise _refusal(
            model,
            made,
            f"its tokenizer has tokens up to {last}, and the model embeds those below {rows}; call"
            " resize_token_embeddings and train them, or take the tokens out",
        )
    generation_end_tokens(Path(model).expanduser())
    messages, pictures = trial_prompt(words=5)
    decoded = {digest: images.decode(content) for digest, content in pictures.items()}
    try:
        prompt = encode_prompt(processor, messages, decoded)
    except Invalid as error:
        raise _refusal(model, made, f"it takes no prompt with a picture: {error}") from error
    placeholder = picture_placeholder(skeleton.config)
    if placeholder is not None and not (prompt["input_ids"] == placeholder).any():
        raise _refusal(model, made, "its chat template or processor writes no token for a picture")
    return processor


def model_length(model: str) -> int | None:
    """Return the positions of a model; ``None`` where its configuration does not name them."""
    from transformers import AutoConfig

    try:
        length = getattr(
            AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config(),
            "max_position_embeddings",
            None,
        )
    except Exception:
        return None  # the model's loading names what is wrong
    return length if isinstance(length, int) else None


def generation_end_tokens(folder: Path) -> list[int] | None:
    """Return the end-of-sequence tokens that ``generation_config.json`` lists; ``None`` without that file.

    Raises:
        Invalid: the file is damaged.
    """
    file = folder / _GENERATION
    if not file.is_file():
        return None
    try:
        listed = json.loads(file.read_text()).get("eos_token_id")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise Invalid(f"{file}: not a JSON object ({describe_failure(error)}); copy it again, or delete it") from error
    tokens = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if not all(type(token) is int for token in tokens):
        raise Invalid(f"{file}: got eos_token_id {str(listed)[:60]!r}; write the number of a token, or a list of them")
    return tokens


def model_class(model: str) -> Any:
    """Return the class of transformers that holds an image-text-to-text checkpoint.

    Raises:
        Invalid: it is of another kind, or needs code of its own, or its weights cannot be trained, or there is none.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    check_checkpoint(model)
    check_stored_weights(model)
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # transformers validates a configuration in many ways
        raise Invalid(
            f"model {model!r} cannot be loaded: {quote_failure(error)}; give a checkpoint whose"
            f" family transformers knows without code from the checkpoint: {_KNOWN}"
        ) from error
    mapping = AutoModelForImageTextToText._model_mapping
    if type(config) not in mapping:
        raise Invalid(
            f"model {model!r} cannot be loaded as an image-text-to-text checkpoint: it is of family"
            f" {config.model_type!r}, which transformers has no such class for; {_KNOWN}"
        )
    made = mapping[type(config)]
    if (method := _quantisation(config)) is not None:
        raise _refusal(
            model, made, f"it is quantised ({method}); give the checkpoint that it was made from, in bfloat16 or so"
        )
    if config.is_encoder_decoder:
        raise _refusal(model, made, "it has an encoder and a decoder, and MoR trains models that decode their prompt")
    if not made.can_generate():
        raise _refusal(model, made, "it generates no text token by token")
    return made


def _quantisation(config: Any) -> str | None:
    """Return the method by which a checkpoint is quantised, as its configuration states it."""
    for part in (config, config.get_text_config()):
        if stated := getattr(part, "quantization_config", None):
            return str(stated.get("quant_method", "unknown method") if isinstance(stated, dict) else stated)
    return None


def check_complete(model: str, loading: Mapping[str, Any], *, headless: bool = False) -> None:
    """Check that every parameter of a model came from its checkpoint. ``loading``: report of ``from_pretrained``.

    transformers makes up random values for those that did not. ``headless``: only those of numbered layers count, as a
    new head is trained.

    Raises:
        Invalid: a tensor was missing.
    """
    if missing := sorted(name for name in loading["missing_keys"] if not headless or _LAYER.search(name)):
        others = sorted(loading["unexpected_keys"])
        instead = f", and has others, such as {others[0]!r}" if others else ""
        raise Invalid(
            f"model {model!r} lacks {len(missing)} tensors, such as {missing[0]!r}{instead}; save it again with"
            " save_pretrained of the whole model, under transformers' names"
        )


def check_parts(name: str, model: Any) -> None:
    """Check that a model has the parts that MoR trains, with or without its weights.

    Raises:
        Invalid: one is missing.
    """
    from torch import nn

    decoder = model.get_decoder()
    if not isinstance(decoder, nn.Module) or decoder is model:
        raise _refusal(name, type(model), "it names no part as its language model (get_decoder)")
    if model.get_output_embeddings() is None:
        raise _refusal(name, type(model), "it has no output embeddings")


def picture_placeholder(config: Any) -> int | None:
    """Return the token that the model replaces by a picture's features. A processor may name others (Ovis 2)."""
    names = ("image_token_id", "image_token_index")
    return next((found for name in names if isinstance(found := getattr(config, name, None), int)), None)


def trial_prompt(words: int) -> tuple[tuple[Message, ...], dict[str, bytes]]:
    """Return any prompt with an image, wider than high so that swapped axes show, and the image's bytes by hash."""
    content = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(content, "png")
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    parts = (ImagePart.of(digest), TextPart(text=" ".join(["picture"] * words)))
    return (Message(role="user", content=parts),), {digest: content.getvalue()}


def _refusal(model: str, made: Any, reason: str) -> Invalid:
    return Invalid(f"model {model!r} ({made.__name__}) cannot be used: {reason}; {_KNOWN}")
