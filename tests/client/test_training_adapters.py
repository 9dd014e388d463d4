"""The mixture as the reward of other trainers, called as their documentation says, on a real router.

TRL itself runs in ``test_trl.py``; verl, ms-swift and NeMo RL are not installed here.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from mor_client import Mor
from mor_client.errors import NoReward
from mor_client.training import nemo_rl, swift, trl, verl
from mor_client.training.prompt_groups import MixtureRewards, ResponseRow
from mor_core.errors import Invalid
from PIL import Image

from tests.router.endpoints import Endpoint, html

PROMPTS = ["One?", "Two?", "One?", "Two?"]
RESPONSES = ["a 1", "a 5", "a 3", "a 2"]


def check_order(rewards: Any) -> None:
    """Check the rewards of ``RESPONSES`` to ``PROMPTS``."""
    assert rewards[0] < rewards[2] and rewards[3] < rewards[1]


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (shade, 0, 0))


def test_rows_are_gathered_by_prompt_and_picture(scorer: Mor, clinic: Endpoint) -> None:
    rows = [ResponseRow("Which?", f"a {n}", [picture(10 * (n % 2))]) for n in range(4)]
    rewards = MixtureRewards(mor=scorer).of(rows)
    assert [item["responses"] for call in clinic.calls for item in call["items"]][-2:] == [
        ["a 0", "a 2"],
        ["a 1", "a 3"],
    ]
    assert all(reward is not None for reward in rewards)


def test_a_part_of_a_group_is_refused(scorer: Mor) -> None:
    rows = [ResponseRow("One?", "a 1"), ResponseRow("One?", "a 2"), ResponseRow("Two?", "a 3")]
    with pytest.raises(Invalid, match="row 2 is the only response"):
        MixtureRewards(mor=scorer).of(rows)
    with pytest.raises(Invalid, match="2 responses to the prompt of row 0, and group_size is 4"):
        MixtureRewards(mor=scorer, group_size=4).of(rows[:2])


def test_a_group_without_a_quorum_has_none_or_ends_the_step(scorer: Mor, clinic: Endpoint) -> None:
    clinic.broken = lambda body: html(body) if "One?" in str(body) else None
    scorer.settings.reward_groups = 1
    rows = [ResponseRow(prompt, response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    rewards = MixtureRewards(mor=scorer).of(rows)
    assert rewards[0] is rewards[2] is None
    assert rewards[1] is not None and rewards[3] is not None and rewards[3] < rewards[1]
    with pytest.raises(NoReward, match="2 of 4 responses"):
        MixtureRewards(mor=scorer).required(rows)


def test_a_misspelt_objective_is_logged_once(scorer: Mor, clinic: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    misspelt = MixtureRewards("exprets", mor=scorer)
    rows = [ResponseRow("Which?", "answer 1"), ResponseRow("Which?", "answer 2")]
    for _ in range(2):
        assert None not in misspelt.of(rows)
    [told] = [record.getMessage() for record in caplog.records if record.name.startswith("mor_client")]
    assert "'exprets'" in told and "no objective is named" in told


def test_trl_with_texts_and_with_messages(scorer: Mor, clinic: Endpoint) -> None:
    reward = pickle.loads(pickle.dumps(trl.reward("experts", num_generations=2)))
    check_order(reward(prompts=PROMPTS, completions=RESPONSES, completion_ids=[], image=[None] * 4, trainer_state=None))
    chats = [[{"role": "user", "content": [{"type": "image", "image": picture(0)}, {"type": "text", "text": prompt}]}]
             for prompt in PROMPTS]  # fmt: skip
    said = [[{"role": "assistant", "content": response}] for response in RESPONSES]
    check_order(reward(prompts=chats, completions=said, images=[[picture(0)]] * 4))
    assert len(clinic.images) >= 1
    bare = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    check_order(reward(prompts=bare, completions=said, image=[picture(99)] * 4))


def test_swift_with_its_columns(scorer: Mor, clinic: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = types.ModuleType("swift.plugin")
    plugin.orms = {}  # type: ignore[attr-defined]
    with pytest.raises(Invalid, match="install ms-swift"):
        swift.register()
    monkeypatch.setitem(sys.modules, "swift", types.ModuleType("swift"))
    monkeypatch.setitem(sys.modules, "swift.plugin", plugin)
    swift.register("mixture", "experts", num_generations=2)
    messages = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    function = plugin.orms["mixture"](args=None)
    check_order(function(RESPONSES, messages=messages, images=[[{"bytes": png(), "path": None}]] * 4))
    with pytest.raises(Invalid, match="no column 'messages'"):
        function(RESPONSES)


def png() -> bytes:
    content = io.BytesIO()
    picture(5).save(content, "PNG")
    return content.getvalue()


class Characters:
    """Tokeniser with a token for each character."""

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(map(chr, ids.tolist()))


def verl_batch() -> Any:
    """Return what verl passes: prompts padded left, responses padded right, columns of objects."""
    responses = torch.zeros(4, 6, dtype=torch.long)
    mask = torch.ones(4, 3 + 6, dtype=torch.long)
    for place, text in enumerate(RESPONSES):
        responses[place, : len(text)] = torch.tensor([ord(letter) for letter in text])
        mask[place, 3 + len(text) :] = 0
    columns = {
        "raw_prompt": np.array([[{"role": "user", "content": prompt}] for prompt in PROMPTS], dtype=object),
        "multi_modal_data": np.array([{"image": [picture(0)]} for _ in PROMPTS], dtype=object),
    }
    batch = {"prompts": torch.ones(4, 3, dtype=torch.long), "responses": responses, "attention_mask": mask}
    return types.SimpleNamespace(batch=batch, non_tensor_batch=columns)


def test_verl_with_prompts_and_pictures(scorer: Mor, clinic: Endpoint) -> None:
    with pytest.raises(Invalid, match="verl cannot be imported"):
        verl.register()
    manager = verl.reward_manager("experts", group_size=2)(tokenizer=Characters(), num_examine=1, compute_score=None)
    batch = verl_batch()
    found = manager(batch, return_dict=True)["reward_tensor"]
    assert found.shape == (4, 6) and found.dtype == torch.float32
    check_order(found.sum(-1))
    assert torch.equal(found.nonzero()[:, 1], torch.full((4,), len("a 1") - 1)), "at the last token"
    clinic.broken = html
    with pytest.raises(NoReward):
        manager(batch)
    scored = types.SimpleNamespace(batch={"rm_scores": found}, non_tensor_batch={})
    assert manager(scored) is found
    del batch.non_tensor_batch["raw_prompt"]
    with pytest.raises(Invalid, match="return_raw_chat"):
        manager(batch)


def test_nemo_rl_rewards_the_last_turn(scorer: Mor, clinic: Endpoint) -> None:
    environment = nemo_rl.MixtureEnvironment({"objective": "experts", "group_size": 2})
    logs = [
        [
            {"role": "user", "content": prompt, "token_ids": torch.ones(3)},
            {"role": "assistant", "content": response, "token_ids": torch.ones(2)},
        ]
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    check_order(environment.rewards(logs))
    with pytest.raises(Invalid, match="does not end with the assistant"):
        environment.rewards([log[:1] for log in logs])
    with pytest.raises(Invalid, match="unknown option 'objectiv'"):
        nemo_rl.MixtureEnvironment({"objectiv": "experts"})
