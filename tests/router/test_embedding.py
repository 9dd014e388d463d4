"""Embeddings: the same input is the same vector, similarity follows content, models load by folder."""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mor_core.errors import Invalid
from mor_core.images import sha256
from mor_core.wire import ImagePart, Message, TextPart
from mor_router.embedding import GateInput, build_embedder
from mor_router.embedding.embedder import Embedder
from mor_router.embedding.hashed_features import ColoursAndEdges, HashedWords
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, ViTConfig, ViTImageProcessorFast, ViTModel

from tests.router.planted import KINDS, picture

pytestmark = pytest.mark.anyio


def gate_input(text: str, *pictures: bytes) -> GateInput:
    parts = [*(ImagePart.of(sha256(content)) for content in pictures), TextPart(text=text)]
    return GateInput((Message(role="user", content=tuple(parts)),), {sha256(content): content for content in pictures})


async def test_questions_of_one_kind_are_closer_than_questions_of_two() -> None:
    embedder = build_embedder(None, None, 100)
    inputs = [gate_input(KINDS[kind].format(i), picture(kind, i)) for kind in KINDS for i in range(4)]
    vectors = await embedder.inputs(inputs)
    similarity = vectors @ vectors.T
    same = np.kron(np.eye(3), np.ones((4, 4))).astype(bool)
    assert similarity[same].min() > similarity[~same].max()
    np.testing.assert_array_equal(vectors, await build_embedder(None, None, 100).inputs(inputs))


def test_a_picture_has_the_histograms_of_its_colours_and_edges() -> None:
    random = np.random.default_rng(0)
    flat = np.kron(random.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1), int))
    stripes = np.where(np.arange(64)[:, None, None] % 7 < 3, 255, np.zeros((64, 64, 3), int))
    for pixels in (random.integers(0, 256, (64, 64, 3)), flat, stripes, stripes[::-1].swapaxes(0, 1)):
        content = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(content, "PNG")
        colours, edges = np.zeros((4, 4, 4)), np.zeros((2, 2, 8))
        np.add.at(colours, tuple(np.moveaxis((pixels / 64).astype(int), 2, 0)), 1)
        down, right = np.gradient(pixels.mean(axis=2))
        turn = (np.arctan2(down, right) % np.pi * 8 / np.pi).astype(int) % 8
        np.add.at(edges, (np.arange(64)[:, None] // 32, np.arange(64) // 32, turn), np.hypot(down, right))
        wanted = [np.sqrt(part.ravel() / np.linalg.norm(np.sqrt(part)) ** 2) for part in (colours, edges)]
        found = ColoursAndEdges()(content.getvalue())
        np.testing.assert_allclose(found, np.concatenate(wanted) / np.sqrt(2), atol=1e-12)


async def test_an_input_without_image_or_text_has_a_vector() -> None:
    embedder = build_embedder(None, None, 100)
    vectors = await embedder.inputs([gate_input("only text"), gate_input("", picture("chart", 1)), gate_input("")])
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0])


async def test_a_corrupt_image_is_an_error_that_names_it() -> None:
    with pytest.raises(Invalid, match="not a readable image"):
        await build_embedder(None, None, 100).inputs([gate_input("?", b"no image")])


async def test_embeddings_are_cached_and_the_cache_is_bounded() -> None:
    class Counting(HashedWords):
        calls = 0

        def __call__(self, text: str) -> np.ndarray:
            Counting.calls += 1
            return super().__call__(text)

    embedder = Embedder(Counting(), ColoursAndEdges(), cache=2)
    for text in ("a", "a", "b", "a", "c", "a", "b"):
        await embedder.text(text)
    assert Counting.calls == 4  # a, b, c, and b again after c had pushed it out


async def test_the_event_loop_runs_while_a_model_works() -> None:
    class Slow(HashedWords):
        def __call__(self, text: str) -> np.ndarray:
            time.sleep(0.3)
            return super().__call__(text)

    embedding = asyncio.create_task(Embedder(Slow(), ColoursAndEdges(), cache=2).text("a"))
    turns = 0
    while not embedding.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 10


async def test_models_are_loaded_by_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "how": 1, "many": 2, "bars": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path / "text")
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=4, max_position_embeddings=16, **size)).save_pretrained(tmp_path / "text")
    ViTModel(ViTConfig(image_size=32, patch_size=16, **size)).save_pretrained(tmp_path / "image")
    ViTImageProcessorFast(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "image")
    embedder = build_embedder(str(tmp_path / "text"), str(tmp_path / "image"), 100)
    vectors = await embedder.inputs([gate_input("how many bars", picture("chart", 1)), gate_input("how many " * 100)])
    assert vectors.shape == (2, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors[0].reshape(2, 32), axis=1), [1, 1])
    assert str(tmp_path / "text") in embedder.name


def test_a_wrong_model_path_is_an_error_that_names_it() -> None:
    with pytest.raises(Invalid, match=r"MOR_EMBED_TEXT_MODEL: './nowhere' cannot be loaded"):
        build_embedder("./nowhere", None, 10)
