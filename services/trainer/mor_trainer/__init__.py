"""The trainer: GRPO on scored groups (``mor-trainer work``), and run control as a process apart (``serve``)."""

__version__ = "0.1.0"
