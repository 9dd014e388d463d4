"""Answer of the experiment in three sentences, and all arms in one table."""

from __future__ import annotations

from typing import Any

from quality.tables import interval, label

from tables.averaging import ARMS, EXPERIMENT, MOR, Found, few_calls, gain, not_ahead, trained
from tables.results import read, table

_POOLED = "centralised reward model (pooled data)"
_BOUNDS = (_POOLED, "oracle (best client per sub-skill)", "gold itself")
"""Arms that no server could run."""
_NOT_MEASURED = "Not measured yet: run `make bench-quality` and `make bench-grpo`.\n"


def answer() -> str:
    """Write three sentences: how well MoR ranks, what its policies gain, and where it is not ahead."""
    found = _records()
    if found is None:
        return _NOT_MEASURED
    ranked, optimal, grown = found
    few, many = (ranked["ranking"][count] for count in ("64", "256"))
    rival = _next(few, lambda arm: few[arm]["accuracy"]["mean"])
    policies = optimal["64"]
    follower = _next(policies["at KL 1"], lambda arm: gain(policies, arm))
    worst = _next(policies["at KL 1"], lambda arm: policies["at KL 1"][arm]["worst"])
    lead = policies["at KL 1"][worst]["MoR ahead in the worst domain"]
    stands = "is ahead" if lead["low"] > 0 else "falls short" if lead["high"] < 0 else "is not certainly ahead"
    ranks = {arm: f"{few[arm]['accuracy']['mean']:.1f}" for arm in few}
    gains = {arm: f"{gain(policies, arm):+.1f}" for arm in (MOR, follower, _POOLED)}
    return (
        f"With 64 anchors MoR ranks **{ranks[MOR]} %** of held-out pairs right and with 256 {_accuracy(many, MOR)} %: "
        f"with 64 it is {interval(few[rival]['behind'])} points ahead of the next that a server could use, "
        f"{_words(rival)}; a model of everybody's data in one place has {ranks[_POOLED]} %.\n"
        f"The policy that is optimal for its reward gains **{gains[MOR]} points** of correct answers at KL 1, against "
        f"{gains[follower]} of the next ({_words(follower)}) and {gains[_POOLED]} with pooled data; GRPO takes the "
        f"base model from {trained(grown['arms'], 'base model')} % to {trained(grown['arms'], MOR)} %.\n"
        f"In the worst domain its optimal policy {stands} of the best other arm's there ({_words(worst)}): "
        f"{interval(lead)} points.\n"
    )


def overview() -> str:
    """Format all arms as Markdown: ranking, optimal policies, policies trained by GRPO, and what MoR does not win."""
    found = _records()
    if found is None:
        return _NOT_MEASURED
    ranked, optimal, grown = found
    head = ["reward", *(f"pairs ranked right, {count} anchors, % (worst domain)" for count in ranked["ranking"])]
    head += [f"best policy at KL 1, {count} anchors, points over base" for count in optimal]
    head += ["trained by GRPO, gold accuracy, %"]
    few = ranked["ranking"]["64"]
    rows = [
        [
            f"**{arm}**" if arm == MOR else label(arm),
            *(f"{_accuracy(part, arm)} ({part[arm]['worst']:.1f})" for part in ranked["ranking"].values()),
            *(f"{gain(part, arm):+.1f}" for part in optimal.values()),
            trained(grown["arms"], arm),
        ]
        for arm in sorted(few, key=lambda arm: float(few[arm]["accuracy"]["mean"]))
    ]
    lines = [*not_ahead(ranked, optimal, grown), *few_calls(), *_second_population()]
    return (
        table([head, ["---", *["--:"] * (len(head) - 1)], *rows])
        + f"\n{ranked['pairs']:,} held-out pairs, commit {ranked['commit']}. "
        + "Brackets of GRPO: lowest to highest run.\n\n"
        + "".join(f"- {line}\n" for line in lines)
    )


def _second_population() -> list[str]:
    """Say how MoR ranks on the second population, if it was measured."""
    result = read(EXPERIMENT.replace("quality", "quality-classroom"))
    if result is None:
        return []
    said = []
    for count, arms in result["ranking"].items():
        rival = _next(arms, lambda arm, arms=arms: arms[arm]["accuracy"]["mean"])
        said.append(
            f"with {count} anchors {_accuracy(arms, MOR)} % of the pairs right, {interval(arms[rival]['behind'])} "
            f"points ahead of the next ({_words(rival)}) and {interval(arms[rival]['worst_behind'])} in the worst "
            "domain"
        )
    pooled = _accuracy(result["ranking"]["64"], _POOLED)
    return [f"On a second population MoR ranks {'; '.join(said)}. Pooled data has {pooled} % there."]


def _records() -> tuple[Found, Found, Found] | None:
    """Return what was measured of ranking, of optimal policies by number of anchors, and of GRPO."""
    ranked, policies = read(EXPERIMENT), read(f"{EXPERIMENT}-policies")
    grown = read(EXPERIMENT.replace("quality", "quality-grpo"))
    if ranked is None or policies is None or grown is None:
        return None
    return ranked, policies["policies"]["by anchors"], grown


def _next(arms: Found, value: Any) -> str:
    """Return the arm with the largest value of those that a server could run instead of MoR."""
    return max((arm for arm in arms if arm not in (MOR, *_BOUNDS)), key=value)


def _words(arm: str) -> str:
    return ARMS.get(arm, label(arm))


def _accuracy(part: Found, arm: str) -> str:
    return f"{part[arm]['accuracy']['mean']:.1f}"
