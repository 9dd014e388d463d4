"""Reward models that run elsewhere, called by the protocol that they speak.

A protocol is one file with one class: its settings, its calls for a group of responses, and the scores of the answers.
Scores are raw logits wherever the server can leave its activation out.
"""

from mor_reward.upstream.scorer import UpstreamScorer, check_upstream
from mor_reward.upstream.upstream_settings import AnyUpstream, UpstreamSettings

__all__ = ["AnyUpstream", "UpstreamScorer", "UpstreamSettings", "check_upstream"]
