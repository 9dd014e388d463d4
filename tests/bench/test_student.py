"""The student of a mixture learns what the mixture prefers, and takes the place of clients that are not asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from quality.arms import MixtureOfRewards
from quality.arms.mixture import serve
from quality.group_scores import AnchorPairs, agreement
from quality.student import rewards_of_few, write_pairs

from tests.bench.synthetic import anchors, groups

TEXTS = ["  a list ", "wrong", "", "right", "wrong"]


def test_pairs_are_labelled_by_the_rewards_of_different_responses(tmp_path: Path) -> None:
    unlabelled = tmp_path / "unlabelled"
    (unlabelled / "images").mkdir(parents=True)
    (unlabelled / "images" / "one.png").write_bytes(b"picture")
    rows = [{"id": str(number), "prompt": "q", "images": ["images/one.png"]} for number in range(3)]
    (unlabelled / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (unlabelled / "responses.json").write_text(json.dumps([TEXTS, ["same", "same "], ["x", "y", "cut \ufffd"]]))
    rewards = np.array([[1.0, 0.0, 9.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 5.0, 0.0, 0.0]])
    shapes = [(row[:size]) for row, size in zip(rewards, (5, 2, 3), strict=True)]
    write_pairs(unlabelled, shapes, tmp_path / "pairs")  # type: ignore[arg-type]
    written = [json.loads(line) for line in (tmp_path / "pairs" / "prefs.jsonl").read_text().splitlines()]
    assert [(row["chosen"], row["rejected"]) for row in written] == [
        ("right", "a list"),
        ("right", "wrong"),
        ("a list", "wrong"),
    ]
    assert len({row["id"] for row in written}) == 3
    assert (tmp_path / "pairs" / "images" / "one.png").exists()


def test_who_is_not_asked_counts_for_nothing_and_a_student_always_counts() -> None:
    drawn, judged = anchors(), groups(400, 3)
    clients = judged.scores.shape[1]
    mixture = MixtureOfRewards().mixture(drawn)
    np.testing.assert_allclose(rewards_of_few(mixture, judged, clients, clients), serve(mixture, judged), rtol=1e-9)
    assert not rewards_of_few(mixture, judged, 0, clients).any()
    most = np.argmax(mixture.evidence(judged.inputs), axis=1)
    silent = judged.scores.copy()
    silent[np.arange(len(judged))[:, None], [[k for k in range(clients) if k != best] for best in most]] = 0.0
    one = rewards_of_few(mixture, judged, 1, clients)
    np.testing.assert_allclose(one, rewards_of_few(mixture, judged.with_scores(silent), 1, clients), rtol=1e-9)

    truth = np.broadcast_to([2.0, 0.0], (len(judged), 1, 2))
    knowing = judged.with_scores(np.concatenate([judged.scores, truth], axis=1))
    shown = drawn.pairs.with_scores(np.concatenate([drawn.pairs.scores, truth[: len(drawn.pairs)]], axis=1))
    fitted = MixtureOfRewards().mixture(AnchorPairs(shown))
    assert agreement(rewards_of_few(fitted, knowing, 0, clients)).mean() == 1.0
