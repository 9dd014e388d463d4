"""MoR's rollout service: samples groups of responses from the current policy and swaps its weights in place."""

__version__ = "0.1.0"
