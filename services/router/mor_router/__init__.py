"""MoR's router: learns, per input and per objective, how much to trust each client, and fuses their scores."""

__version__ = "0.1.0"
