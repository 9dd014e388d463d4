"""Results of runs: their model cards, and their way to a hub or a registry."""
