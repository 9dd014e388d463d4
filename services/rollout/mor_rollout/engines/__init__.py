"""Engines that sample groups: vLLM and transformers, behind one protocol."""
