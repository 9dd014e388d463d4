"""Leaks of the demonstration's private data by scores, and costs of bounds: one module for each part.

Each part has ``measure(state, quick)``, which returns its figures; ``state`` keeps data and models between runs.
"""
