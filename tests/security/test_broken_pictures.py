"""No picture makes a decoder raise anything but this project's own errors, take long, or take much memory."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mor_core import images
from mor_core.datafiles import read_preferences
from mor_core.errors import MorError, TooLarge
from mor_reward.backbones.backbone import Picture
from mor_rollout.chat.openai_schema import ChatRequest
from mor_router.embedding.hashed_features import ColoursAndEdges
from mor_trainer.reporting.thumbnails import thumbnail

from tests.security.broken_pictures import FORMATS, bombs, mutants, valid

LONGEST_S = 2.0
"""Processor time: the largest picture that is read takes less than half of it."""
_MOST_MEGABYTES = 300
"""Growth of the memory of a process that reads all bombs: that of some decoded megabytes, and of the decoders."""


def is_read(read: Callable[[bytes], object], content: bytes) -> bool:
    """Return whether ``content`` was read; an error of ours means that it was refused."""
    begun = time.thread_time()
    try:
        read(content)
    except MorError as error:
        assert " object at 0x" not in str(error), "the message shows memory addresses"
        return False
    finally:
        assert time.thread_time() - begun < LONGEST_S
    return True


def chat(content: bytes) -> object:
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    request = ChatRequest.model_validate({"model": "policy", "messages": [message]})
    return request.conversation(most_images=1, most_image_bytes=images.MAX_BYTES)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_mutant_is_a_picture_or_an_error_of_ours(kind: str, long_profile: bool) -> None:
    assert all(is_read(images.decode, content) for content in valid(kind))
    count = 10_000 if long_profile else 300
    read = sum(is_read(images.decode, content) for content in mutants(kind, count, seed=7))
    assert 0 < read < count, "some mutants are read, some are refused"


def test_every_path_that_reads_pictures_refuses_as_the_decoder_does(tmp_path: Path, long_profile: bool) -> None:
    def data_file(content: bytes) -> object:
        cell = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        row = {"prompt": "q", "chosen": "a", "rejected": "b", "images": [cell]}
        (tmp_path / "prefs.jsonl").write_text(json.dumps(row))
        return read_preferences(tmp_path / "prefs.jsonl")

    def picture(content: bytes) -> object:
        return Picture(images.sha256(content), content).decode()

    readers: tuple[Callable[[bytes], object], ...] = (thumbnail, ColoursAndEdges(), chat, data_file, picture)
    broken = [content for kind in FORMATS for content in mutants(kind, 200 if long_profile else 12, seed=11)]
    for content in [*broken, *bombs().values()]:
        expected = is_read(images.decode, content)
        assert [is_read(read, content) for read in readers] == [expected] * len(readers)
        if expected:
            assert images.media_type(content).startswith("image/")


@pytest.mark.parametrize("name", [name for name in bombs() if name != "pixels of 64 MB for one"])
def test_a_file_that_promises_too_much_is_refused(name: str) -> None:
    with pytest.raises(MorError) as refused:
        images.decode(bombs()[name])
    assert isinstance(refused.value, TooLarge) or "readable image" in str(refused.value)


def test_bombs_take_little_memory() -> None:
    script = (
        "import resource, contextlib\n"
        "from mor_core import images, errors\n"
        "from tests.security.broken_pictures import bombs, valid\n"
        "[images.decode(content) for content in valid('TIFF')]\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "files = bombs(); before = peak()\n"
        "for content in files.values():\n"
        "    with contextlib.suppress(errors.MorError): images.decode(content)\n"
        "print((peak() - before) // 1024)\n"
    )
    root = Path(__file__).parents[2]
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120, check=True
    )
    assert int(told.stdout) < _MOST_MEGABYTES
