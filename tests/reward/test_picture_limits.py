"""A picture over a limit, or one that cannot be decoded, leaves the other items of its request scored."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from mor_core.image_budget import MOST_PIXELS
from mor_core.images import MAX_BYTES, MAX_PIXELS, sha256
from mor_reward.config import RewardSettings
from PIL import Image

from tests.reward import reward_kit as kit
from tests.reward.served import ANSWERS, BLUE, RED, service


def padded(picture: bytes, size: int) -> bytes:
    """Return a picture of ``size`` bytes; what follows its end is not decoded."""
    return picture + b"\0" * (size - len(picture))


def blank(side: int) -> bytes:
    content = io.BytesIO()
    Image.new("1", (side, side)).save(content, "PNG")
    return content.getvalue()


def request(**pictures: bytes) -> dict[str, Any]:
    """Return a request with one item for each picture, under its name."""
    bodies = [kit.score_body(ANSWERS, picture, item_id=name) for name, picture in pictures.items()]
    images = {digest: content for body in bodies for digest, content in body["images"].items()}
    return {**bodies[0], "items": [item for body in bodies for item in body["items"]], "images": images}


async def outcomes(settings: RewardSettings, body: dict[str, Any]) -> list[tuple[str, str]]:
    async with service(settings) as http:
        card = (await http.get("/v1/card")).json()
        assert card["limits"]["image_bytes"] == settings.max_image_bytes
        answer = await http.post("/v1/score", json=body)
        assert answer.status_code == 200, answer.text
    return [(item["status"], item["detail"] or "") for item in answer.json()["items"]]


@pytest.mark.anyio
async def test_an_item_with_a_larger_picture_is_unscorable(settings: RewardSettings) -> None:
    small = settings.model_copy(update={"max_image_bytes": 1000})
    found = await outcomes(small, request(before=RED, large=padded(RED, 1001), after=BLUE))
    assert [status for status, _ in found] == ["ok", "unscorable", "ok"]
    assert "has 1001 bytes, of at most 1000; scale it down" in found[1][1]


@pytest.mark.anyio
async def test_every_picture_that_a_data_file_may_have_is_scored(settings: RewardSettings) -> None:
    found = await outcomes(settings, request(large=padded(RED, MAX_BYTES)))
    assert found == [("ok", "")]
    with pytest.raises(ValueError, match="less than or equal"):
        RewardSettings.model_validate({**settings.model_dump(), "max_image_bytes": MAX_BYTES + 1})


@pytest.mark.anyio
async def test_an_item_beyond_the_budget_of_pixels_leaves_the_others_scored(settings: RewardSettings) -> None:
    side = 5793
    assert side**2 <= MAX_PIXELS < 2 * side**2
    content = blank(side)
    huge = [padded(content, len(content) + place) for place in range(MOST_PIXELS // side**2 + 1)]
    body = request(first=RED, many=huge[0], last=BLUE)
    body["images"] |= {sha256(one): base64.b64encode(one).decode() for one in huge}
    shown = [{"type": "image_url", "image_url": {"url": f"sha256:{sha256(one)}"}} for one in huge]
    body["items"][1]["messages"] = [{"role": "user", "content": shown}]
    found = await outcomes(settings, body)
    assert [status for status, _ in found] == ["ok", "unscorable", "ok"]
    assert "pixels together" in found[1][1]


@pytest.mark.anyio
async def test_a_picture_that_cannot_be_decoded_makes_its_item_unscorable(settings: RewardSettings) -> None:
    found = await outcomes(settings, request(before=RED, torn=BLUE[:60], after=BLUE))
    assert [status for status, _ in found] == ["ok", "unscorable", "ok"]
    assert "not a readable image" in found[1][1]
