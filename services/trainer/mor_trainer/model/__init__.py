"""The policy: loading, encoding prompts once, laying responses out, log-probabilities."""
