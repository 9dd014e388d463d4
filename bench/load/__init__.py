"""Load on the services: many clients, replicas and callers at once."""
