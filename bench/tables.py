"""The tables that README and docs show, made from ``bench/results/*.json`` and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, median
from typing import Any

from quality.tables import markdown, trained

RESULTS = Path(__file__).parent / "results"
_ARMS = {
    "aligned": "aligned by MoR",
    "shuffled": "control: shuffled rewards",
    "supervised": "reference: supervised tuning on pooled answers",
}

_MODELS = {
    "smollm2-135m": "SmolLM2-135M's shape",
    "smollm2-10-layers": "SmolLM2-135M's shape with 10 of its 30 layers",
}
"""Shapes that results are shown of, the first that was measured."""


def read(name: str) -> dict[str, Any] | None:
    """A result by its name; None where it was not measured."""
    file = RESULTS / f"{name}.json"
    return dict(json.loads(file.read_text())) if file.is_file() else None


def demonstration(name: str = "demo-default") -> str:
    """Gold accuracy of base and arms by domain, and what the run cost, as Markdown."""
    result = read(name)
    if result is None:
        return "Not measured yet: `python bench/demo.py` does.\n"
    arms = result["arms"]
    runs = arms["aligned"]["runs"]
    domains = list(runs[0]["accuracy"]["base"])
    head = ["greedy answers, gold accuracy in %", *domains, "mean gain, points"]
    rows = [head, ["---", *["--:"] * (len(domains) + 1)]]
    rows.append(["base", *(_accuracies(runs, "base", domain) for domain in domains), ""])
    for arm, title in _ARMS.items():
        if arm in arms:
            found = arms[arm]["runs"]
            gain = arms[arm]["gain_points"]["mean"]
            spread = f" ({gain['low']:+.1f} to {gain['high']:+.1f})" if len(found) > 1 else ""
            shown = [_accuracies(found, "aligned", domain) for domain in domains]
            rows.append([title, *shown, f"{gain['mean']:+.1f}{spread}"])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n{_cost(result, runs)}\n"


def trainer() -> str:
    """Shared prompts against plain and against TRL, and the ways to share, as Markdown."""
    parts = [
        (f"python bench/{file}.py", next(filter(None, (read(f"{name}-{shape}") for shape in _MODELS)), None), show)
        for file, name, show in (
            ("shared_prompt", "shared-prompt", _shared),
            ("trainer_step", "trainer-step", _against_trl),
            ("arrangements", "arrangements", _arrangements),
            ("ranks", "ranks", _ranks),
        )
    ]
    told = [
        f"Not measured yet: `{command}` does.\n" if result is None else f"{show(result)}\n{_where(result, command)}\n"
        for command, result, show in parts
    ]
    return "\n".join(told)


def quarantine() -> str:
    """How often the test of usefulness errs, as Markdown."""
    result = read("quarantine")
    if result is None:
        return "Not measured yet: `python bench/quarantine.py` does.\n"
    arrangements: dict[str, Any] = result["failed"]
    sizes = list(next(iter(next(iter(arrangements.values())).values())))
    rows = [
        [
            "five regions",
            f"client; where it is right, in {100 * result['skill']:.0f} % of pairs",
            *(f"{size} anchors" for size in sizes),
        ],
        ["---", "---", *["--:"] * len(sizes)],
        *(
            [arrangement, client, *(f"{100 * share:.0f} %" for share in shares.values())]
            for arrangement, clients in arrangements.items()
            for client, shares in clients.items()
        ),
    ]
    made = f"`python bench/quarantine.py`, {result['measured']}, commit {result['commit']}."
    return f"{table(rows)}\nShare of {result['trials']} trials in which the client fails (p > 0.1). {made}\n"


def hostile() -> str:
    """What hostile and broken clients do to the served router, as Markdown."""
    result = read("hostile")
    if result is None:
        return "Not measured yet: `python bench/hostile.py` does.\n"
    scenarios: dict[str, Any] = result["scenarios"]
    clean = scenarios["clean"]["ranking_accuracy"]
    rows = [
        [
            "scenario",
            "accuracy, %",
            "against clean, points",
            "just after the first fit, %",
            "weight, %",
            "state",
            "groups lost",
            "ms a call, median (95 %)",
        ],
        ["---", *["--:"] * 4, "---", "--:", "--:"],
    ]
    for name, found in scenarios.items():
        weight, spent = found["largest_hostile_weight"], found["seconds_per_call"]
        rows.append(
            [
                name,
                f"{100 * found['ranking_accuracy']:.1f}",
                f"{100 * (found['ranking_accuracy'] - clean):+.1f}",
                f"{100 * found['accuracy_by_round'][0]:.1f}",
                "" if weight is None else f"{100 * weight:.1f}",
                ", ".join(found["states"].values()),
                f"{found['lost_groups']}",
                f"{1e3 * spent['p50']:.0f} ({1e3 * spent['p95']:.0f})",
            ]
        )
    plan = result["plan"]
    told = (
        f"Accuracy: pairs within {plan['held_out']} held-out groups of 8 that the reward ranks as the truth does, "
        f"after {plan['refits']} refits with {plan['anchors']} fresh anchors each; weight: the largest of the "
        f"scenario's clients there. `python bench/hostile.py`, {result['measured']}, commit {result['commit']}."
    )
    return f"{table(rows)}\n{told}\n"


def containers() -> str:
    """Sizes of images, start-up and restarts of their containers, as Markdown."""
    result = read("containers")
    if result is None:
        return "Not measured yet: `python bench/containers.py` does.\n"
    asked, run, machine = result["tiny_profile_requests"], result["restarts"], result["machine"]
    stalls = ", ".join(f"{event} {seconds:.0f} s" for event, seconds in run["stall_s"].items())
    told = (
        f"The tiny profile requests {asked['memory_gib']:.1f} GiB and {asked['cores']:.2f} cores in all. Its pods run "
        "from the rendered manifests, with a random model of under a million parameters; a start is from that of the "
        f"process until `/readyz` says so. `helm test` took {result['helm_test_s']:.0f} s, its run of two steps too.",
        f"In a run of {run['steps']} steps of {run['step_median_s']:.1f} s, the longest time without a step after an "
        f"interruption: {stalls}. {run['groups_applied_once']} of {run['groups']} groups were applied, none twice.",
        f"Measured {result['measured']} on {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_gb']:.0f} GB, by `python bench/containers.py` at commit {result['commit']}.",
    )
    return "\n".join((_containers(result), *told)) + "\n"


def _containers(result: dict[str, Any]) -> str:
    names = {"control": "run control", "reward": "reward, with a function"}
    images = {"control": "trainer", "worker": "trainer"}
    rows = [
        ["container", "image, GB", "first start, s", "start again, s: median, longest", "memory at most, GB"],
        ["---", *["--:"] * 4],
    ]
    for name, peak in result["peak_memory_gb"].items():
        size, start = result["images_gb"].get(images.get(name, name)), result["start"].get(name)
        rows.append(
            [
                names.get(name, name),
                "" if size is None else f"{size:.2f}",
                *(
                    ("", "")
                    if start is None
                    else (f"{start['first_s']:.1f}", "{median_s:.1f}, {longest_s:.1f}".format(**start))
                ),
                f"{peak:.2f}",
            ]
        )
    return table(rows)


def _shared(result: dict[str, Any]) -> str:
    rows = [
        ["prompt, tokens", "responses", "plain, s", "shared, s", "faster", "FLOP bound", "of the bound"],
        ["--:"] * 7,
        *(
            [
                f"{case['prompt']}",
                f"{case['group_size']} x {case['response']}",
                f"{case['plain']['forward_backward']:.2f}",
                f"{case['shared']['forward_backward']:.2f}",
                f"{case['speedup']:.2f}x",
                f"{case['bound']:.2f}x",
                f"{100 * case['of_bound']:.0f} %",
            ]
            for case in result["cases"]
        ),
    ]
    title = (
        f"Shared against plain: forward and backward pass of a step, groups: {result['groups']}, policy and reference. "
        "The bound is the ratio of floating-point operations, the language-model head included."
    )
    return f"{title}\n\n{table(rows)}"


def _against_trl(result: dict[str, Any]) -> str:
    rows = [
        ["prompt, tokens", "TRL, s", "MoR, s", "faster", "TRL, activations", "MoR, activations", "share"],
        ["--:"] * 7,
        *(
            [
                f"{case['prompt']}",
                f"{case['seconds']['trl']:.1f}",
                f"{case['seconds']['mor']:.1f}",
                f"{case['speedup']:.2f}x",
                f"{case['activation_gb']['trl']:.2f} GB",
                f"{case['activation_gb']['mor']:.2f} GB",
                f"{100 * case['activation_share']:.0f} %",
            ]
            for case in result["cases"]
        ),
    ]
    title = (
        f"The trainer's step against TRL {result['trl']}: {result['groups']} prompts with a picture each x "
        f"{result['size']} responses of {result['response']} tokens, generation left out, optimiser included; peak "
        "memory above weights, gradients and optimiser state, with a group at a time on both sides."
    )
    return f"{title}\n\n{table(rows)}"


def _arrangements(result: dict[str, Any]) -> str:
    ways = list(result["cases"][0]["seconds"])
    rows = [
        ["prompt, response", *(f"{way}, s" for way in ways), "largest gradient difference"],
        ["--:"] * (len(ways) + 2),
        *(
            [
                f"{case['prompt']}, {case['response']}",
                *(f"{case['seconds'][way]:.2f}" for way in ways),
                f"{max(case['gradient_difference'].values()):.0e}",
            ]
            for case in result["cases"]
        ),
    ]
    title = (
        f"Ways to share a prompt: forward and backward pass of the language model, groups: {result['groups']}, "
        f"{result['size']} responses each; `packed` is what the trainer does."
    )
    return f"{title}\n\n{table(rows)}"


def _ranks(result: dict[str, Any]) -> str:
    rows = [
        ["trained", "one process, s", "two ranks, s", "gathering, s", "difference of losses", "difference of weights"],
        ["---", *["--:"] * 5],
        *(
            [
                {"full": "all parameters", "lora": "adapters"}[case["tuning"]],
                f"{case['seconds']['one']:.2f}",
                f"{case['seconds']['two']:.2f}",
                f"{case['gather_seconds']:.2f}",
                f"{case['metric_difference']['loss']:.0e}",
                f"{case['weight_difference']:.0e}",
            ]
            for case in result["cases"]
        ),
    ]
    title = (
        f"A process of two threads against two ranks of one thread each: the update of a step of {result['groups']} "
        f"prompts of {result['prompt']} tokens x {result['size']} responses of {result['response']} tokens. "
        "Differences: the largest of a step's loss, relative to the largest loss, and the norm of that of the trained "
        "weights after the last step, relative to theirs. Gathering: what the published tensors take to come together."
    )
    return f"{title}\n\n{table(rows)}"


def table(rows: list[list[str]]) -> str:
    """Rows, the second of which aligns the columns, as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def measured_on(result: dict[str, Any], command: str) -> str:
    """When, where and by what a result was measured."""
    machine = result["machine"]
    return (
        f"Measured {result['measured']} on {machine['cores']} cores of {machine['processor']} by `{command}` at commit "
        f"{result['commit']}."
    )


def _where(result: dict[str, Any], command: str) -> str:
    cpu = result.get("clock") == "cpu"
    clock = "CPU seconds of the process, as others used the machine" if cpu else "wall-clock seconds"
    threads = f", threads: {result['threads']}" if "threads" in result else ""
    return (
        f"Model: {_MODELS[result['shape']]}, random weights, float32; {clock}{threads}. {measured_on(result, command)}"
    )


def experiment() -> str:
    """The answers of ``bench/quality``, of the largest size that was run, as Markdown."""
    for name in ("quality-full", "quality-quick"):
        result = read(name)
        if result is not None:
            made = (
                f"Measured on {result['pairs']:,} held-out pairs at commit {result['commit']}, {result['measured']}"
                f"{_spent(result['seconds'])}; `bench/results/{name}.json` has all numbers.\n"
            )
            return f"{made}\n{markdown(result, level=4)}\n{_closed_loop(name)}"
    return "Not measured yet: `make bench-quality` does.\n"


def _spent(seconds: dict[str, float]) -> str:
    """How long it took, where nothing was there already."""
    stages = ("material", "training", "scoring")
    if not all(seconds[stage] > 1 for stage in stages):
        return ""
    rest = sum(spent for stage, spent in seconds.items() if stage not in stages)
    told = ", ".join(f"{stage} {seconds[stage] / 60:.1f}" for stage in stages)
    return f", in {sum(seconds.values()) / 60:.0f} minutes ({told}, comparing {rest / 60:.1f})"


def _closed_loop(experiment: str) -> str:
    name = experiment.replace("quality", "quality-grpo")
    result = read(name)
    told = "Not run yet: `make bench-grpo` does.\n" if result is None else f"{trained(result)}\n"
    return f"#### Policies trained by GRPO under the rewards of the best arms\n\n{told}"


def _accuracies(runs: list[dict[str, Any]], which: str, domain: str) -> str:
    values = [100 * run["accuracy"][which][domain]["accuracy"] for run in runs]
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}"


def _cost(result: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    first, machine = runs[0], result["machine"]
    run = first["run"]
    questions = sum(domain["n"] for domain in first["accuracy"]["base"].values())
    steps = ", ".join(f"{value:.2f}" for value in sorted(one["run"]["step_seconds"] for one in runs))
    swaps = run["weight_swaps"]
    memory = max(one["peak_memory_gb"] for one in runs)
    whole = [one["wall_seconds"] / 60 for one in runs if one["from_nothing"]]
    minutes = f"everything from the pictures to the table in {median(whole):.1f} minutes, " if whole else ""
    return (
        f"Mean over {len(runs)} seeds (lowest to highest), each with its own pictures, base model and reward models; "
        f"{questions} test questions a seed. {run['steps']} steps of {run['groups_per_step']} prompts x "
        f"{run['group_size']} responses at {steps} s a step (median of each seed); {minutes}"
        f"{memory:.1f} GB at peak, downloads apart; a weight swap took {swaps['mean_seconds']:.2f} s. "
        f"KL to the reference at the end: {fmean(one['run']['kl'] for one in runs):.3f} nats a token. "
        f"Measured {result['measured']} on {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_gb']:.0f} GB, {machine['accelerator'] or 'no GPU'}, by `python bench/demo.py` at commit "
        f"{result['commit']}."
    )
