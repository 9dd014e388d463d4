"""Discovery of reward services in the router's own cluster: labelled Services are enrolled, and removed when gone."""

from mor_router.clients.discovery.discovery import Discovery

__all__ = ["Discovery"]
