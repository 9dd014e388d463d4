"""Checks that clients behave as they did at the fit: honeypots, drift, disagreement, quarantine."""
