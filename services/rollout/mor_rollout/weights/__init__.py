"""Base checkpoints, and published weights pulled over HTTP."""
