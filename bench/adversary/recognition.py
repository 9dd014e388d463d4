"""Recognition of honeypots: a gradient-boosting classifier on all that a client sees of the groups that it scores.

The area under its ROC curve is 0.5 where honeypots cannot be told from live groups. Folds are blocks of time; the
classifier knows the truth about all groups of the other blocks, which no client does. The interval is a bootstrap over
calls, because the groups of a call have much in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from adversary.recorded_calls import RecordedCall, item_images

_FOLDS = 5
_WORDS = 24
"""Buckets of the hashed words of the question and the responses."""
_AROUND = 3
"""Calls before and after one whose times count."""
_EARLIER = 8
"""Earlier calls among which those in flight are counted."""
_REPLICATES = 1000

Features = Mapping[str, Float[ndarray, "groups features"]]
"""Kind of features -> features of each group."""


class _History:
    """Pictures, texts and questions that a client saw in earlier calls."""

    def __init__(self) -> None:
        self.pictures: Counter[str] = Counter()
        self.texts: Counter[str] = Counter()
        self.questions: Counter[tuple[str, ...]] = Counter()
        self.answers: Counter[tuple[str, ...]] = Counter()
        """Question and one response to it."""
        self.groups: Counter[tuple[str, ...]] = Counter()
        """Question and all responses in any order."""
        self.ports: Counter[int] = Counter()

    def add(self, call: RecordedCall) -> None:
        self.ports[call.port] += 1
        for item in call.body["items"]:
            question, responses = _identity(item), item["responses"]
            self.pictures.update(item_images(item))
            self.texts.update({_question(item), *responses})
            self.questions[question] += 1
            self.answers.update((*question, text) for text in set(responses))
            self.groups[(*question, *sorted(responses))] += 1

    def of(self, item: dict[str, Any]) -> list[float]:
        """Describe a group by what came before it."""
        question, responses = _identity(item), item["responses"]
        return [
            min((self.pictures[digest] for digest in item_images(item)), default=0),
            sum(self.pictures[digest] for digest in item_images(item)),
            self.texts[_question(item)],
            self.questions[question],
            self.groups[(*question, *sorted(responses))],
            float(np.mean([self.texts[text] for text in responses])),
            float(np.mean([self.texts[text] > 0 for text in responses])),
            float(np.mean([self.answers[(*question, text)] > 0 for text in responses])),
        ]


def features(calls: Sequence[RecordedCall]) -> Features:
    """Describe each group of each call by its content, its call, its time, and what came before it."""
    history = _History()
    rows: dict[str, list[list[float]]] = {
        kind: [] for kind in ("time", "call", "history", "shape", "question", "responses")
    }
    starts = np.array([call.at for call in calls])
    for place, call in enumerate(calls):
        items = call.body["items"]
        time, envelope = _time(calls, starts, place), _envelope(call, history)
        before = np.array([history.of(item) for item in items])
        shapes = np.array([_shape(item) for item in items])
        for index, item in enumerate(items):
            rows["time"].append(time)
            rows["call"].append([*envelope, index, index / len(items)])
            rows["history"].append([*before[index], *(before[index] - before.mean(axis=0))])
            rows["shape"].append([*shapes[index], *(shapes[index] - shapes.mean(axis=0))])
            rows["question"].append(_words(_question(item)))
            rows["responses"].append(_words(" ".join(item["responses"])))
        history.add(call)
    return {kind: np.array(found, dtype=float) for kind, found in rows.items()}


def recognition(calls: Sequence[RecordedCall]) -> dict[str, Any]:
    """Train and test the classifier; return the area under its curve with a 95 % interval, and that of each kind of
    features alone.
    """
    found = features(calls)
    truth = np.array([honeypot for call in calls for honeypot in call.honeypots])
    own = np.repeat(np.arange(len(calls)), [len(call.honeypots) for call in calls])
    scores = _scores(np.concatenate([*found.values()], axis=1), truth)
    areas = []
    random = np.random.default_rng(0)
    groups_of = [np.flatnonzero(own == place) for place in range(len(calls))]
    for _ in range(_REPLICATES):
        rows = np.concatenate([groups_of[place] for place in random.integers(len(calls), size=len(calls))])
        if 0 < truth[rows].sum() < len(rows):
            areas.append(area(scores[rows], truth[rows]))
    low, high = np.quantile(areas, (0.025, 0.975))
    return {
        "calls": len(calls),
        "groups": len(truth),
        "honeypots": int(truth.sum()),
        "auc": area(scores, truth),
        "interval_95": [float(low), float(high)],
        "alone": {kind: area(_scores(inputs, truth), truth) for kind, inputs in found.items()},
    }


def _scores(inputs: Float[ndarray, "groups features"], truth: ndarray) -> Float[ndarray, " groups"]:
    """Return for each group how much it looks like a honeypot to a classifier that was trained on the other blocks."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    scores = np.zeros(len(truth))
    for fold in np.array_split(np.arange(len(truth)), _FOLDS):
        rest = np.setdiff1d(np.arange(len(truth)), fold)
        model = HistGradientBoostingClassifier(
            max_iter=150, learning_rate=0.06, max_leaf_nodes=8, min_samples_leaf=10, random_state=0
        )
        with threadpool_limits(1):  # spinning threads of a small model take longer on a busy machine
            model.fit(inputs[rest], truth[rest])
            scores[fold] = model.predict_proba(inputs[fold])[:, 1]
    return scores


def area(scores: Float[ndarray, " groups"], truth: ndarray) -> float:
    """Compute the probability that a honeypot has a higher score than a live group; a tie counts one half."""
    live = np.sort(scores[~truth])
    below = np.searchsorted(live, scores[truth], "left") + np.searchsorted(live, scores[truth], "right")
    return float(below.mean() / (2 * len(live)))


def _time(calls: Sequence[RecordedCall], starts: Float[ndarray, " calls"], place: int) -> list[float]:
    call = calls[place]
    around = starts[max(0, place - _AROUND) : place + _AROUND + 1] - call.at
    gaps = np.zeros(2 * _AROUND + 1)
    gaps[: len(around)] = np.sort(np.abs(around))
    return [
        *gaps,
        call.at - starts[place - 1] if place else 0.0,
        starts[place + 1] - call.at if place + 1 < len(calls) else 0.0,
        sum(other.at <= call.at < other.ended for other in calls[max(0, place - _EARLIER) : place]),
        call.ended - call.at,
    ]


def _envelope(call: RecordedCall, history: _History) -> list[float]:
    items, headers = call.body["items"], dict(call.headers)
    pictures = [digest for item in items for digest in item_images(item)]
    return [
        len(items),
        call.bytes,
        call.repeated,
        history.ports[call.port],
        int(headers.get("x-mor-deadline-ms", 0)),
        len(headers),
        crc32(" ".join(name for name, _ in call.headers).encode()) % 997,
        crc32(" ".join(call.body).encode()) % 997,
        crc32(" ".join(items[0]).encode()) % 997,
        len(headers.get("traceparent", "")),
        len(pictures) - len(set(pictures)),
    ]


def _shape(item: dict[str, Any]) -> list[float]:
    responses = item["responses"]
    counts = sorted(Counter(responses).values(), reverse=True)
    lengths = [len(text) for text in responses]
    together = "".join(responses) or " "
    return [
        len(responses),
        len(counts),
        counts[0],
        counts[1] if len(counts) > 1 else 0,
        float(np.mean(lengths)),
        float(np.std(lengths)),
        max(lengths),
        min(lengths),
        *(sum(map(kind, together)) / len(together) for kind in (str.isdigit, str.isupper, str.isspace, str.isalpha)),
        together.count(".") / len(responses),
        len(_question(item)),
        len(item["item_id"]),
        responses.index(max(responses, key=responses.count)),
        len(item_images(item)),
    ]


def _identity(item: dict[str, Any]) -> tuple[str, ...]:
    return (_question(item), *item_images(item))


def _question(item: dict[str, Any]) -> str:
    contents = [message["content"] for message in item["messages"]]
    return " ".join(
        part if isinstance(part, str) else part.get("text", "")
        for content in contents
        for part in ([content] if isinstance(content, str) else content)
    )


def _words(text: str) -> list[float]:
    found = [0.0] * _WORDS
    for word in text.split():
        found[crc32(word.encode()) % _WORDS] += 1
    return found
