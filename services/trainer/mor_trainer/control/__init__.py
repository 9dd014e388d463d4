"""Run control: runs, their workers, their history, and alerts."""
