"""Run control: which runs there are, who trains them, what happened in them, and whom to tell."""
