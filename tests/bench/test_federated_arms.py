"""Every federated arm from start to adapters, with a tiny policy and real reward models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mor_reward.backbones import DualEncoderConfig
from mor_reward.progress import NoProgress
from mor_reward.train_config import TrainConfig
from mor_reward.training_job import TrainingJob, train
from mor_trainer.algorithm.advantage import group_std
from quality.arms.arm import slug
from quality.federated import report
from quality.federated.arms import arms
from quality.federated.arms.binary_selector import preferences
from quality.federated.arms.following import FollowingReward
from quality.federated.arms.rewarded import MixtureReward
from quality.federated.compute import SERVER, Budget, Ledger
from quality.federated.federation import FederatedArm, Federation, read_pairs, read_server_prompts
from quality.federated.grpo_training import train_by_reward
from quality.federated.local_training import RATES, Recipe
from quality.federated.local_training import train as train_locally
from quality.federated.measures import Questions, satisfaction
from quality.federated.policy import Policy
from quality.federated.rewards import RewardPanel, ScoreBytes
from quality.group_scores import AnchorPairs, Rewards
from quality.scoring import Group, groups
from three_domains.assembly import ModelShape, build_processor, save, train_tokenizer, untrained_model

from tests.reward import reward_kit as kit

CLIENTS = ("one", "two")
BUDGET = Budget(steps=2, batch=4, rounds=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread: the models are too small for more, and waiting threads lose time on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an untrained base model, small enough for seconds."""
    out = tmp_path_factory.mktemp("policy") / "base"
    shape = ModelShape(encoder_layers=1, hidden=64, layers=1, vocabulary=320)
    tokenizer = train_tokenizer(["It is red", "It is blue", "What colour is it?", "user\nassistant\n"] * 20, 320)
    torch.manual_seed(0)
    model = untrained_model(tokenizer, shape)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # the head is not trained, and a new one allows only nearly even odds
    save(model, build_processor(tokenizer, shape), out)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two clients' pairs, the server's prompts, and three reward models."""
    root = tmp_path_factory.mktemp("federation")
    text, vision = kit.build_text_encoder(root / "text"), kit.build_vision_encoder(root / "vision")
    config = DualEncoderConfig(vision=str(vision), text=str(text), image_size=64, width=32, max_length=32, max_images=2)
    for seed, name in enumerate(("one", "two", "server")):
        prefs = kit.write_colour_preferences(root / name, 10, seed)
        rows = [json.loads(line) for line in prefs.read_text().splitlines()]
        for number, row in enumerate(rows):
            question = [{"type": "image"}, {"type": "text", "text": row["prompt"]}]
            row |= {"prompt": [{"role": "user", "content": question}], "domain": "colour", "id": f"{name}-{number}"}
        kit.write_lines(prefs, rows)
        prompts = [{key: row[key] for key in ("prompt", "images", "domain", "id")} for row in rows]
        kit.write_lines(root / name / "prompts.jsonl", prompts)
    for name, source in (("one", "one"), ("two", "two"), ("averaged", "one")):
        job = TrainingJob(
            root / source / "prefs.jsonl", root / "models" / name, name, "colours", config, TrainConfig(epochs=1)
        )
        train(job, NoProgress())
    return root


@pytest.fixture(scope="module")
def federation(base: Path, data: Path) -> Federation:
    policy, panel = Policy(base), RewardPanel(data / "models", CLIENTS)
    anchors = groups(data / "server")
    return Federation(
        policy=policy,
        pairs={client: read_pairs(policy, data / client, ["colour"]) for client in CLIENTS},
        prompts=read_server_prompts(policy, data / "server", ["colour"]),
        anchors=AnchorPairs(panel.group_scores(anchors)),
        anchor_groups=anchors,
        label=lambda _, response: "e" in response,
        panel=panel,
        averaged_from=CLIENTS,
        averaged_bytes=1000,
        budget=BUDGET,
        seed=0,
    )


def fresh(federation: Federation) -> Federation:
    """Copy the federation with nothing spent and nothing sent."""
    return replace(federation, ledger=Ledger(), score_bytes=ScoreBytes())


@pytest.mark.parametrize("arm", arms(), ids=lambda arm: slug(arm.title))
def test_an_arm_spends_its_budget_and_moves_the_policy(arm: FederatedArm, federation: Federation) -> None:
    ours = fresh(federation)
    trained = arm.train(ours)
    ours.ledger.check(BUDGET, list(CLIENTS), local=arm.local, server=arm.server)
    alone = arm.title.startswith("local")
    assert set(trained.adapters) == (set(CLIENTS) if alone else {""})
    assert (ours.ledger.to_clients == ours.ledger.from_clients == 0) == alone
    start = ours.policy.start
    for adapter in trained.adapters.values():
        assert adapter.keys() == start.keys()
        assert all(torch.isfinite(value).all() for value in adapter.values())
        moved = max(float((adapter[name] - start[name]).abs().max()) for name in start)
        assert moved > 0 or arm.server  # rewards of a group may all be equal
    assert ours.ledger.rows[SERVER] == (BUDGET.of_server(2) if arm.server else 0)


def test_labels_on_the_way_are_half_and_need_a_true_and_a_false_response(federation: Federation) -> None:
    reward = FollowingReward(fresh(federation))
    prompt = federation.prompts[0].group.prompt
    unanimous, divided = Group(prompt, ("yes", "red")), Group(prompt, ("red", "no"))  # with an "e": true
    assert reward([unanimous]).shape == (1, 2)
    assert reward.labelled == 0
    reward([divided] * 20)
    assert reward.labelled == len(federation.anchors.pairs) // 2
    assert np.isfinite(reward([divided])).all()  # of the mixture with the new anchors


def test_parameters_cost_more_bytes_than_the_scores_of_a_step(federation: Federation) -> None:
    averaged, mixture = fresh(federation), fresh(federation)
    by_title = {arm.title: arm for arm in arms()}
    by_title["FedAvg of LoRA by SFT"].train(averaged)
    by_title[MixtureReward.title].train(mixture)
    adapter = sum(value.numel() * 4 for value in averaged.policy.start.values())
    assert averaged.ledger.to_clients == averaged.ledger.from_clients == 2 * BUDGET.rounds * adapter
    assert 0 < mixture.ledger.from_clients < averaged.ledger.from_clients


def test_an_average_of_one_client_in_one_round_is_its_local_training(federation: Federation) -> None:
    one = replace(fresh(federation), pairs={"one": federation.pairs["one"]}, budget=Budget(2, 4, 1))
    by_title = {arm.title: arm for arm in arms()}
    averaged = by_title["FedAvg of LoRA by DPO"].train(one).adapters[""]
    policy = one.policy
    policy.load(policy.start)
    recipe = Recipe("dpo", 4, RATES["dpo"])
    alone = train_locally(policy, one.pairs["one"], 2, recipe, fresh(federation).ledger, "one", "0/one/0")
    for name, value in alone.items():
        torch.testing.assert_close(averaged[name], value)


def test_samples_have_the_probabilities_that_training_sees(federation: Federation) -> None:
    """Answer greedily with prompts of two lengths together: each token is the most probable by ``log_probs``."""
    policy = federation.policy
    policy.load(policy.start)
    asked = [prompt.asked for prompt in federation.prompts[:3]]
    asked += [replace(asked[0], ids=(*asked[0].ids, *policy.tokens("It is "))), asked[0]]
    drawn = policy.sample(asked)
    together, _ = policy.log_probs(drawn)
    for row, response in enumerate(drawn):
        alone, mask = policy.log_probs([response])
        np.testing.assert_allclose(alone[0].detach(), together[row, : len(response.ids)].detach(), atol=1e-4)
        assert mask.all()
        for other in range(4):
            changed = replace(response, ids=(*response.ids[:-1], other))
            assert policy.log_probs([changed])[0][0, -1] <= alone[0, -1] + 1e-4


def test_the_reference_is_the_base_model(federation: Federation) -> None:
    policy, pair = federation.policy, federation.pairs["one"][0]
    policy.load(policy.start)
    base, _ = policy.log_probs([pair.chosen])
    policy.load({name: value + 0.1 for name, value in policy.start.items()})
    with policy.reference():
        torch.testing.assert_close(policy.log_probs([pair.chosen])[0], base)
    assert not torch.allclose(policy.log_probs([pair.chosen])[0], base)


def test_the_selectors_preference_turns_with_the_pair(federation: Federation) -> None:
    policy, pairs = federation.policy, federation.pairs["one"][:2]
    turned = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs]
    torch.testing.assert_close(preferences(policy, pairs), -preferences(policy, turned), atol=1e-5, rtol=1e-5)


def test_sft_makes_the_preferred_answers_likelier_and_dpo_likelier_than_the_others(federation: Federation) -> None:
    policy, pairs = federation.policy, federation.pairs["one"]

    def levels() -> tuple[float, float]:
        chosen, rejected = ([getattr(pair, side) for pair in pairs] for side in ("chosen", "rejected"))
        sums = [policy.log_probs(side)[0].detach().sum(dim=1) for side in (chosen, rejected)]
        return float(sums[0].mean()), float((sums[0] - sums[1]).mean())

    policy.load(policy.start)
    likely, margin = levels()
    train_locally(policy, pairs, 12, Recipe("sft", 8, 2e-3), Ledger(), "one", "x")
    assert levels()[0] > likely + 1
    policy.load(policy.start)
    train_locally(policy, pairs, 12, Recipe("dpo", 8, 2e-3), Ledger(), "one", "x")
    assert levels()[1] > margin + 0.3


def test_a_strong_proximal_term_keeps_a_client_near_the_common_adapter(federation: Federation) -> None:
    policy, moved = federation.policy, {}
    for prox in (0.0, 100.0):
        policy.load(policy.start)
        found = train_locally(policy, federation.pairs["one"], 8, Recipe("sft", 4, 2e-3, prox), Ledger(), "one", "x")
        moved[prox] = sum(float((found[name] - policy.start[name]).square().sum()) for name in found)
    assert moved[100.0] < moved[0.0] / 2


def test_grpo_finds_what_is_rewarded(federation: Federation) -> None:
    """Reward the letter e: responses have more of it after training than before."""
    ours = replace(fresh(federation), budget=Budget(steps=64, batch=8, rounds=1), rate=5.0)
    shares: list[float] = []

    def reward(made: Sequence[Group]) -> Rewards:
        found = [[example.response.count("e") for example in group.examples] for group in made]
        shares.append(float(np.mean(found)))
        return np.array(found, dtype=float)

    train_by_reward(ours, reward, lambda rewards: group_std(rewards, 0.1))
    assert len(shares) == 64 * 8 * 2 // 64
    assert np.mean(shares[-2:]) > 2 * np.mean(shares[:2]), shares


def test_a_picture_is_sent_to_a_client_once(federation: Federation) -> None:
    some = groups(federation.prompts[0].asked.picture.parent)[:1]
    sizes = fresh(federation).score_bytes
    first, second = sizes.of("one", some), sizes.of("one", some)
    picture = sum(len(content) for content in some[0].prompt.images.values())
    assert first[0] - second[0] >= picture
    assert first[1] == second[1]
    assert sizes.of("two", some) == first


def test_the_report_names_every_arm_and_pairs_its_runs() -> None:
    def run(level: float) -> dict[str, object]:
        return {
            "gold": {"chart": 100 * level, "detail": 100 * level},
            "correct": [level] * 4,
            "least satisfied": {"client": "one", "percent": 40.0},
            "bytes to clients": 10,
            "bytes from clients": 5,
            "adaptation": {"0": {"own": 1.0, "elsewhere": 2.0}},
        }

    runs = {report.BASE: [run(0.25)], MixtureReward.title: [run(0.75), run(1.0)], "other": [run(0.5), run(0.5)]}
    found = report.summary(runs, ["chart", "chart", "detail", "detail"])
    assert found["other"]["MoR ahead"]["mean"]["mean"] == pytest.approx(37.5)
    assert found["other"]["bytes"] == 15
    text = report.markdown(
        {"arms": found, "without": "detail", "budget": {"steps": 2, "batch": 4}, "seeds": [0, 1], "questions": 4}
    )
    assert "detail (not trained on)" in text
    assert text.count("\n| ") == 4


def test_a_client_is_half_satisfied_with_unchanged_answers(federation: Federation) -> None:
    some = groups(federation.prompts[0].asked.picture.parent)[:3]
    questions = Questions([], some, [])
    right, wrong = ([group.examples[place].response for group in some] for place in (0, 1))
    level = {
        name: satisfaction(federation.panel, "one", questions, range(3), given, wrong)
        for name, given in (("same", wrong), ("changed", right))
    }
    assert level["same"] == pytest.approx(50)
    back = satisfaction(federation.panel, "one", questions, range(3), wrong, right)
    assert level["changed"] + back == pytest.approx(100)
    assert level["changed"] != pytest.approx(50)
