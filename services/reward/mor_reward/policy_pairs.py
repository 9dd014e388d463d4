"""Pairs of the policy's own answers, for the owner of a reward model to label.

A reward model knows the kinds of answers that it was trained on. What the policy says (garbage, hedges and one word for
every question included) must be among the rejected ones, or the policy finds what the model loves and says nothing
else. Run control shows a client the groups that it scored; this module makes pairs of them, in the columns of
HelpSteer 2, which ``mor-reward train`` reads once a person has set ``preference_strength``.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import stamina
from mor_core import atomic
from mor_core.errors import Conflict, Invalid, MorError, Unauthorized, Unavailable
from mor_core.failures import quote_failure
from mor_core.run_status import SampleGroup, SampleGroups
from pydantic import ValidationError

from mor_reward.server_connection import TIMEOUT_S, connection, exchange

_ATTEMPTS = 5
"""Attempts of one call; with the pauses of at most 5 s enough for a run control that restarts."""
_MOST_GROUPS = 200
"""Groups that run control returns at a time; it keeps about as many."""
_MOST_SAMPLE_BYTES = 128 << 20
"""Bytes of that many groups of 64 cut responses each, with room to spare."""
_MOST_PICTURES = 100 * _MOST_GROUPS
_MOST_PICTURE_BYTES = 1 << 20
"""Bytes of a thumbnail, ten times those of a usual one."""
_CUT = 2000
"""Characters at which run control cuts prompts and responses; one that is as long may lack its end."""
_REPEATS = 12
"""Repetitions of a word in a pair about repetition: longer than any sentence repeats one."""
_PROMPT = re.compile(r"(?:system: (?P<system>.*?)\n)?user: (?P<user>.*)", re.DOTALL)
_CURES = {
    401: "the token is not that of this client's page; give the file that 'mor-reward register' wrote",
    403: "this token may not read samples; give the page token of an enrolled client",
    404: "check --control and --run; the platform team knows the run's id",
}


@dataclass(frozen=True)
class PairsFile:
    """Result of ``write_pairs``."""

    pairs: int
    groups: int
    left_out: int
    """Groups that gave no pair: several turns, a cut text, or one response only."""
    pictures: int


class _ControlUnavailable(Unavailable):
    """Run control cannot be reached or requests a later retry."""


def write_pairs(
    control: str, token: str, run: str, target: Path, *, seed: int = 0, proxy: str | None = None
) -> PairsFile:
    """Write pairs of the responses that this client scored in a run, and their pictures, as thumbnails, beside them.

    Raises:
        Conflict: ``target`` or its folder of pictures exists.
        Unauthorized: run control refused the token.
        Invalid: there is no such run, no group yet, or no run control at the address.
        Unavailable: no answer in all attempts.
    """
    folder = target.with_name(f"{target.stem}-images")
    for path in (target, folder):
        if path.exists():
            raise Conflict(f"{path} exists; choose another --out, or delete it")
    if target.suffix != ".jsonl":
        raise Invalid(f"{target}: got suffix {target.suffix!r}; write to a .jsonl file")
    with connection("--control", control, token, proxy) as http:
        groups = _samples(http, run)
        rows = list(policy_pairs(groups, folder.name, random.Random(seed)))
        if not rows:
            raise Invalid(
                f"run {run} has no group of this client with two different responses yet; try again after some steps"
            )
        used = {Path(picture).stem for row in rows for picture in row["images"]}
        if len(used) > _MOST_PICTURES:
            raise Invalid(f"the groups of run {run} have {len(used)} pictures, at most {_MOST_PICTURES} are fetched")
        folder.mkdir(parents=True)
        for digest in sorted(used):
            picture = _get(http, f"/v1/runs/{run}/images/{digest}", _MOST_PICTURE_BYTES)
            atomic.write(folder / f"{digest}.jpg", picture.content)
    atomic.write(target, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
    kept = {row["id"].rpartition("/")[0] for row in rows}
    return PairsFile(len(rows), len(kept), len(groups) - len(kept), len(used))


def policy_pairs(groups: Sequence[SampleGroup], folder: str, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Yield the pairs of sample groups, unlabelled: ``preference_strength`` is 0, which is no pair.

    Of each group: two of its responses, and one of them against the answer that the policy gives most often, against a
    hedge between two, and against a word that repeats. ``folder``: folder of the pictures, relative to the file.
    """
    frequent = Counter(text for group in groups for text in {*group.responses} if text.strip()).most_common(1)
    for group in groups:
        prompt = _PROMPT.fullmatch(group.prompt)
        responses = sorted({text for text in group.responses if text.strip() and len(text) < _CUT})
        if prompt is None or len(group.prompt) >= _CUT or len(responses) < 2 or "\nassistant: " in group.prompt:
            continue
        one, other = draw.sample(responses, 2)
        against = {
            "responses": other,
            "frequent": frequent[0][0] if frequent else one,
            "hedge": f"{one} or {other}",
            "repetition": " ".join([one.split()[0]] * _REPEATS),
        }
        system = {} if prompt["system"] is None else {"system": prompt["system"]}
        for kind, text in against.items():
            if text == one:
                continue
            first, second = draw.sample([one, text], 2)  # so that the place tells a person nothing
            yield {
                "id": f"{group.group_id}/{kind}",
                **system,
                "prompt": prompt["user"],
                "images": [f"{folder}/{digest}.jpg" for digest in group.images],
                "response_1": first,
                "response_2": second,
                "preference_strength": 0,
                **({} if group.domain is None else {"domain": group.domain}),
            }


def _samples(http: httpx.Client, run: str) -> list[SampleGroup]:
    content = _get(http, f"/v1/runs/{run}/samples?limit={_MOST_GROUPS}", _MOST_SAMPLE_BYTES).content
    try:
        return list(SampleGroups.model_validate_json(content, extra="ignore").samples[:_MOST_GROUPS])
    except ValidationError as error:
        raise Invalid(f"{http.base_url} did not return samples; check that --control is a run control") from error


def _get(http: httpx.Client, path: str, most_bytes: int) -> httpx.Response:
    for attempt in stamina.retry_context(
        on=_ControlUnavailable, attempts=_ATTEMPTS, timeout=2 * TIMEOUT_S, wait_initial=0.2, wait_max=5.0
    ):
        with attempt:
            return _get_once(http, path, most_bytes)
    raise AssertionError("the retry context returns or raises")


def _get_once(http: httpx.Client, path: str, most_bytes: int) -> httpx.Response:
    try:
        response = exchange(http, "GET", path, most_bytes=most_bytes)
    except httpx.InvalidURL as error:
        raise Invalid(f"--run: {quote_failure(error)}; give the id of a run") from error
    except httpx.TransportError as error:
        raise _ControlUnavailable(
            f"no answer from run control at {http.base_url}: {error or type(error).__name__}; "
            "check that it is running and reachable from here"
        ) from error
    if response.status_code in (429, 502, 503, 504):
        raise _ControlUnavailable(f"run control at {http.base_url} answered {response.status_code}; try again later")
    if response.is_success:
        return response
    cure = _CURES.get(response.status_code, "check --control and --run")
    kind: type[MorError] = Unauthorized if response.status_code in (401, 403) else Invalid
    raise kind(f"run control refused {path.partition('?')[0]} ({response.status_code}); {cure}")
