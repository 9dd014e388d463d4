"""The mixture as the reward of trainers outside of MoR: one module for each trainer. ``docs/integrations.md`` has more.

::

    prompt_groups    gathers the responses of a batch by their prompts, scores the groups, spreads the rewards
    trl              reward functions of TRL's GRPOTrainer
    verl             reward manager of verl
    swift            reward function of ms-swift
    nemo_rl          environment of NeMo RL

None of them imports its trainer before it is used, so the SDK needs none of these packages.
"""
