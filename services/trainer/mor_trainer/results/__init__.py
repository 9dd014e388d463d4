"""Results of runs: their model cards and files."""
