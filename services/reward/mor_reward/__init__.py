"""What a client runs on its own premises: train a reward model on private preferences, calibrate and serve it."""

__version__ = "0.1.0"
