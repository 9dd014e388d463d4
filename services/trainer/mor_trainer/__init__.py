"""The trainer: GRPO on scored groups (``mor-trainer work``), and run control, status and weight files in a
separate process (``mor-trainer serve``)."""

__version__ = "0.1.0"
