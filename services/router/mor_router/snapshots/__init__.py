"""Snapshots of the router's state outside of Redis, and its restoration where the queue server comes back empty."""
