"""Recognition of honeypots: a gradient-boosting classifier on all that a client sees of its calls.

The area under its ROC curve is 0.5 where honeypots cannot be told from live calls. Folds are blocks of time, as a
client would learn on the past; the interval is a bootstrap over calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from adversary.recorded_calls import RecordedCall, item_images

_FOLDS = 5
_WORDS = 24
"""Buckets of the hashed words of the questions and responses."""
_REPLICATES = 1000


def features(calls: Sequence[RecordedCall]) -> Float[ndarray, "calls features"]:
    """Describe each call by its bytes, its time and what came before it."""
    seen: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    ports: Counter[int] = Counter()
    rows = []
    starts = np.array([call.at for call in calls])
    for place, call in enumerate(calls):
        items = call.body["items"]
        lines = np.array([_item(item, seen, texts) for item in items], dtype=float)
        around = starts[max(0, place - 3) : place + 4] - call.at
        gaps = np.zeros(7)
        gaps[: len(around)] = np.sort(np.abs(around))
        headers = dict(call.headers)
        pictures = [digest for item in items for digest in item_images(item)]
        rows.append(
            [
                *(
                    statistic
                    for column in lines.T
                    for statistic in (column.mean(), column.min(), column.max(), column.std())
                ),
                len(items),
                *gaps,
                call.at - starts[place - 1] if place else 0.0,
                (starts[place + 1] - call.at) if place + 1 < len(calls) else 0.0,
                sum(other.at <= call.at < other.ended for other in calls[max(0, place - 8) : place]),
                call.ended - call.at,
                call.bytes,
                call.repeated,
                ports[call.port],
                int(headers.get("x-mor-deadline-ms", 0)),
                len(headers),
                crc32(" ".join(name for name, _ in call.headers).encode()) % 997,
                crc32(" ".join(call.body).encode()) % 997,
                crc32(" ".join(items[0]).encode()) % 997,
                len(headers.get("traceparent", "")),
                len(pictures) - len(set(pictures)),
                *_words(" ".join(str(item["messages"]) for item in items), pictures),
                *_words(" ".join(" ".join(item["responses"]) for item in items), []),
            ]
        )
        ports[call.port] += 1
        seen.update(pictures)
        texts.update(text for item in items for text in {_question(item), *item["responses"]})
    return np.array(rows, dtype=float)


def recognition(calls: Sequence[RecordedCall]) -> dict[str, Any]:
    """Train and test the classifier; return the area under its curve with a 95 % interval."""
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError as error:
        raise SystemExit("scikit-learn is missing; run `pip install --group bench` from the repository") from error
    inputs, truth = features(calls), np.array([call.honeypot for call in calls])
    scores = np.zeros(len(calls))
    for fold in np.array_split(np.arange(len(calls)), _FOLDS):
        rest = np.setdiff1d(np.arange(len(calls)), fold)
        model = HistGradientBoostingClassifier(
            max_iter=150, learning_rate=0.06, max_leaf_nodes=8, min_samples_leaf=10, random_state=0
        )
        model.fit(inputs[rest], truth[rest])
        scores[fold] = model.predict_proba(inputs[fold])[:, 1]
    random = np.random.default_rng(0)
    drawn = random.integers(len(calls), size=(_REPLICATES, len(calls)))
    areas = [area(scores[rows], truth[rows]) for rows in drawn if 0 < truth[rows].sum() < len(rows)]
    low, high = np.quantile(areas, (0.025, 0.975))
    return {
        "calls": len(calls),
        "honeypots": int(truth.sum()),
        "auc": area(scores, truth),
        "interval_95": [float(low), float(high)],
    }


def area(scores: Float[ndarray, " calls"], truth: ndarray) -> float:
    """Compute the probability that a honeypot has a higher score than a live call; a tie counts one half."""
    differences = scores[truth][:, None] - scores[~truth][None, :]
    return float((np.sign(differences) + 1).mean() / 2)


def _item(item: dict[str, Any], seen: Counter[str], texts: Counter[str]) -> list[float]:
    responses = item["responses"]
    counts = sorted(Counter(responses).values(), reverse=True)
    lengths = [len(text) for text in responses]
    together = "".join(responses) or " "
    pictures = item_images(item)
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
        sum(seen[digest] for digest in pictures),
        texts[_question(item)],
        float(np.mean([texts[text] for text in responses])),
        responses.index(max(responses, key=responses.count)),
        len(pictures),
    ]


def _question(item: dict[str, Any]) -> str:
    contents = [message["content"] for message in item["messages"]]
    return " ".join(
        part if isinstance(part, str) else part.get("text", "")
        for content in contents
        for part in ([content] if isinstance(content, str) else content)
    )


def _words(text: str, without: Sequence[str]) -> list[int]:
    for digest in without:
        text = text.replace(digest, "")
    found = [0] * _WORDS
    for word in text.split():
        found[crc32(word.encode()) % _WORDS] += 1
    return found
