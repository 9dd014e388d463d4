"""Events of a plausible run: three clients, three domains, pictures, an alert."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import random
from typing import Any

from PIL import Image, ImageDraw

CLIENTS = ("chart", "detail", "medical")
_ANSWERS = ("four bars", "a bar chart with four bars, blue", "three", "<img src=x onerror=document.title='broken'>")
_SHARES = {"waiting": 0.9, "processing": 0.2, "forward_backward": 1.0, "optimiser": 0.15, "publication": 0.1}


def step_data(step: int) -> dict[str, Any]:
    """Return the metrics of a step, as a training process reports them."""
    chance = random.Random(step)
    risen = 1 - math.exp(-step / 40)
    weights = {domain: _weights(domain, risen, chance) for domain in CLIENTS}
    clients = {
        name: {
            "reward_mean": (0.9 + 0.3 * index) * risen - 0.4 + chance.gauss(0, 0.08),
            "raw_mean": 2.0 * risen + chance.gauss(0, 0.2),
            "weight": sum(weights[domain][name] for domain in CLIENTS) / len(CLIENTS),
            "seconds": 0.2 + 0.1 * index,
            "failures": {"timeout": 1} if name == "medical" and step % 17 == 0 else {},
            "failures_total": {"timeout": step // 17} if name == "medical" and step >= 17 else {},
        }
        for index, name in enumerate(CLIENTS)
    }
    seconds = {name: value * chance.uniform(0.8, 1.2) for name, value in _SHARES.items()}
    return {
        "reward_mean": 1.3 * risen - 0.35 + chance.gauss(0, 0.06),
        "reward_std": 0.9 - 0.3 * risen,
        "group_reward_std": 0.6 - 0.25 * risen,
        "zero_variance_ratio": 0.05 + 0.1 * risen,
        "mixture_entropy": 0.9 - 0.4 * risen,
        "kl": 0.12 * risen + abs(chance.gauss(0, 0.004)),
        "entropy": 1.8 - 0.7 * risen + chance.gauss(0, 0.03),
        "clip_low_ratio": 0.01 * chance.random(),
        "clip_high_ratio": 0.015 * chance.random(),
        "importance_limited_ratio": 0.002,
        "grad_norm": 0.6 + chance.random() * 0.4,
        "response_length_mean": 9 + 3 * risen + chance.gauss(0, 0.3),
        "truncation_ratio": 0.02 * chance.random(),
        "staleness_mean": 0.6 + 0.2 * chance.random(),
        "staleness_max": chance.choice([1, 1, 1, 2]),
        "tokens_per_second": 540 + chance.gauss(0, 25),
        "step_seconds": sum(seconds.values()),
        "seconds": seconds,
        "clients": clients,
        "domains": {domain: {"groups": 5, "reward_mean": risen, "weights": weights[domain]} for domain in CLIENTS},
        "gate_version": 1 + step // 50,
    }


def _weights(domain: str, risen: float, chance: random.Random) -> dict[str, float]:
    """Return weights that favour the client of the domain more and more."""
    mass = {name: math.exp((2.2 * risen if name == domain else 0.0) + chance.gauss(0, 0.05)) for name in CLIENTS}
    return {name: value / sum(mass.values()) for name, value in mass.items()}


def evaluation(step: int) -> dict[str, Any]:
    found = step_data(step)
    clients = {name: figures["reward_mean"] + 0.1 for name, figures in found["clients"].items()}
    return {"step": step, "version": step, "reward": found["reward_mean"] + 0.1, "clients": clients}


def samples(step: int) -> dict[str, Any]:
    """Return a sample group of the step with its picture."""
    content = _picture(step)
    digest = hashlib.sha256(content).hexdigest()
    rewards = [0.9, 1.2, -0.8, -1.3]
    group = {
        "group_id": f"{step:06x}", "prompt_id": f"chart-{step % 8}", "domain": CLIENTS[step % 3],
        "prompt": f"user: How many bars does the chart have? ({step})", "images": [digest],
        "weights_version": step, "gate_version": 1, "fusion": "weighted", "responses": list(_ANSWERS),
        "rewards": rewards, "advantages": [0.8, 1.1, -0.7, -1.2],
        "clients": [
            {"client": "chart", "status": "ok", "weight": 0.7, "raw": [3.1, 4.0, -2.0, -4.4], "calibrated": rewards},
            {"client": "detail", "status": "ok", "weight": 0.3, "raw": [0.2, 0.1, 0.0, -0.3],
             "calibrated": [0.3, 0.1, 0.0, -0.4]},
            {"client": "medical", "status": "circuit_open", "detail": "five calls in a row failed", "weight": 0.0},
        ],
    }  # fmt: skip
    return {"groups": [group], "thumbnails": {digest: base64.b64encode(content).decode()}}


def _picture(step: int) -> bytes:
    chance = random.Random(step)
    image = Image.new("RGB", (192, 128), "white")
    draw = ImageDraw.Draw(image)
    for bar in range(4):
        draw.rectangle((20 + 42 * bar, chance.randint(15, 90), 50 + 42 * bar, 115), fill=(30, 90 + 30 * bar, 180))
    draw.line((10, 115, 186, 115), fill="black", width=2)
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()
