"""Rewards of groups, with an account of every client's scores and weight."""
