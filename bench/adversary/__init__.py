"""Hostile clients against the router's defences: recognition of honeypots, and harm until they lose their weight."""
