"""Rewards of groups, with every client's scores and weight as the explanation."""
