"""Clients: the registry, the egress policy, and bounded requests for scores. Their answers are not trusted."""
