"""Chat judges that do not judge, that think, and whose replies are cut off."""

from __future__ import annotations

import pytest

from tests.reward.test_upstreams import ask, item, scoring
from tests.reward.upstream_servers import Upstreams
from tests.trainer.kit import served

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("mode", ["pairs", "rating"])
@pytest.mark.parametrize(
    ("finish", "reply"),
    [
        ("length", "The answer lists 3 items, A and B"),
        ("stop", "<think>A has 3 items"),
        ("stop", ""),
        ("stop", "Sorry, I cannot help with a request of this kind."),
    ],
)
async def test_a_judge_that_does_not_judge_is_an_error_and_never_a_tie(
    upstreams: Upstreams, mode: str, finish: str, reply: str
) -> None:
    upstreams.finish, upstreams.rating, upstreams.choices = finish, reply, (reply, reply)
    protocol = {"protocol": "chat", "model": "judge", "mode": mode}
    async with served(upstreams.app) as url, scoring(url, protocol) as queue:
        (outcome,) = await ask(queue, item())
    assert (outcome.status, outcome.scores) == ("error", None)
    assert "the judge's reply" in (outcome.detail or "")


async def test_a_judge_may_think_and_call_a_tie(upstreams: Upstreams) -> None:
    async with served(upstreams.app) as url, scoring(url, {"protocol": "chat", "model": "judge"}) as queue:
        upstreams.choices = ("<think>A or B?</think>\n\nA", "<think>A or B?</think>\n\nB")
        (outcome,) = await ask(queue, item(("9", "4", "1")))
        assert outcome.scores is not None and outcome.scores[0] > outcome.scores[1] > outcome.scores[2]
        for tie in ("A and B are equal", "It is a tie."):
            upstreams.choices = (tie, tie)
            (outcome,) = await ask(queue, item(("9", "4")))
            assert outcome.scores == (0.0, 0.0)


async def test_a_letter_that_max_tokens_cuts_is_a_vote(upstreams: Upstreams) -> None:
    upstreams.finish, upstreams.choices = "length", ("A", "b")
    async with served(upstreams.app) as url, scoring(url, {"protocol": "chat", "model": "judge"}) as queue:
        (outcome,) = await ask(queue, item(("9", "4")))
    assert outcome.scores is not None and outcome.scores[0] > outcome.scores[1]
