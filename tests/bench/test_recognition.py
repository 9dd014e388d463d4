"""Features of recorded calls, and the area under a classifier's curve."""

from __future__ import annotations

import numpy as np
from adversary.recognition import area, features
from adversary.recorded_calls import RecordedCall


def call(at: float, picture: str, *responses: str) -> RecordedCall:
    image = {"type": "image_url", "image_url": {"url": f"sha256:{picture * 64}"}}
    item = {"item_id": "x", "messages": [{"role": "user", "content": [image]}], "responses": responses}
    return RecordedCall(at, at + 0.1, 1, (("x-mor-deadline-ms", "29750"),), {"items": [item]}, 100, False, (False,))


def test_the_area_is_one_for_a_perfect_order_and_one_half_without_information() -> None:
    truth = np.array([True, True, False, False])
    assert area(np.array([3.0, 2.0, 1.0, 0.0]), truth) == 1
    assert area(np.array([3.0, 1.0, 1.0, 0.0]), truth) == 0.875
    assert area(np.zeros(4), truth) == 0.5


def test_repetition_and_what_comes_again_are_features() -> None:
    calls = [call(0, "a", "yes", "no"), call(1, "b", "yes", "yes"), call(2, "a", "no", "yes"), call(3, "a", "1", "2")]
    found = features(calls)
    assert {len(rows) for rows in found.values()} == {4}
    assert len(np.unique(found["shape"], axis=0)) == 3
    assert len(np.unique(found["history"], axis=0)) == 4, "of the groups with one picture, one comes exactly again"
