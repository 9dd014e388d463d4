"""Reward services of the router's own cluster: Services with a label, enrolled and removed as they come and go."""

from mor_router.clients.discovery.discovery import Discovery

__all__ = ["Discovery"]
