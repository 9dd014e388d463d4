"""Shared parts of MoR's services and clients. They need no torch, and redis only with the extra ``streams``."""

__version__ = "0.1.0"
