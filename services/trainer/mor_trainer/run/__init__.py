"""Runs: the lease, the worker that claims runs, and the loop of one run."""
