"""Rewards of the mixture for groups of one's own: a trainer outside of MoR, a file, a notebook. Example::

from mor_client import Mor
from mor_client.rewards import RewardGroup

with Mor() as mor:
    [found] = mor.rewards.score([RewardGroup.of("How many bars?", ["Four.", "Five."], images=["chart.png"])])
    print(found.required())
"""

from mor_client.rewards.reward_calls import RewardCalls
from mor_client.rewards.reward_groups import GroupResult, RewardGroup

__all__ = ["GroupResult", "RewardCalls", "RewardGroup"]
