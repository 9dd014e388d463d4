"""Engines that sample groups: one protocol, vLLM and transformers behind it."""
