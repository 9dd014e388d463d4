"""Federated baselines: policies that clients train together, compared with policies that the server trains by scores.

All start from one base model with LoRA on its decoder. Read in this order: ``compute`` (what is equal for all arms),
``adapters`` and ``policy``, ``local_training`` and ``grpo_training``, ``arms`` (one file each), ``measures`` and
``study`` (the whole).
"""
