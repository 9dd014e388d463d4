"""Forms of answers that the privacy figures compare."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from mor_reward.answers.answer_form import AnswerForm
from numpy import ndarray

FORMS = {
    "as they are": AnswerForm(),
    "6 bits": AnswerForm(bits=6, centred=True),
    "4 bits": AnswerForm(bits=4, centred=True),
    "3 bits": AnswerForm(bits=3, centred=True),
    "2 bits": AnswerForm(bits=2, centred=True),
    "ranks": AnswerForm(ranks=True),
    "noise 0.5": AnswerForm(noise=0.5),
    "noise 1": AnswerForm(noise=1.0),
    "noise 2": AnswerForm(noise=2.0),
    "noise 4": AnswerForm(noise=4.0),
}
"""Noise in logits; bits over the default range of ±8 logits."""


def answered(form: AnswerForm, scores: Float[ndarray, "groups size"], seed: int) -> Float[ndarray, "groups size"]:
    """Return the scores of groups as a service answers them. Groups do not share questions, so their noise differs."""
    normals = np.random.default_rng(seed).standard_normal(scores.shape)
    return np.stack([form(group, normal) for group, normal in zip(scores, normals, strict=True)])
