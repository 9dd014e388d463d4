"""Objectives: anchors, gates in force, and uploads."""
