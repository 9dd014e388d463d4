"""Prompts of a run: their check before the first step, and the rows that are left out for it."""
