"""Leaks of the demonstration's private data by scores, and costs of bounds: one module for each part."""
