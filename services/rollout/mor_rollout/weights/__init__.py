"""Weights from outside: base checkpoints, and published versions pulled over HTTP."""
