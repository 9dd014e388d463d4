"""Tables of README and docs, generated from ``bench/results/*.json`` alone: one file per topic."""

from tables.averaging import averaging
from tables.containers import containers, images
from tables.demonstration import demonstration, private_demonstration
from tables.faults import faults, soak
from tables.first_run import first_run
from tables.load import load
from tables.loop import whole_loop
from tables.mixture import experiment, hostile, quarantine
from tables.other_trainers import other_trainers
from tables.polling import polling
from tables.privacy import copies, hidden_scores, limited_answers, private_accuracy, private_models
from tables.prompt_sets import prompt_sets
from tables.requirements import requirements
from tables.situational import recognition, situational
from tables.trainer import on_gpu, trainer
from tables.upstreams import upstreams
from tables.verdict import answer, overview

__all__ = [
    "answer",
    "averaging",
    "containers",
    "copies",
    "demonstration",
    "experiment",
    "faults",
    "first_run",
    "hidden_scores",
    "hostile",
    "images",
    "limited_answers",
    "load",
    "on_gpu",
    "other_trainers",
    "overview",
    "polling",
    "private_accuracy",
    "private_demonstration",
    "private_models",
    "prompt_sets",
    "quarantine",
    "recognition",
    "requirements",
    "situational",
    "soak",
    "trainer",
    "upstreams",
    "whole_loop",
]
