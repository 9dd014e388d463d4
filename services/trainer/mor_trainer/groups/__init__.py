"""Exchange of groups with the other services: dispatch, ledger, rewards, replay."""
