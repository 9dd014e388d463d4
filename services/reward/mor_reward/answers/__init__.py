"""Limits on what answers reveal: noise, rounding, ranks, budgets, and the client's own record of its answers."""
