"""The policy: loading, tokenized prompts, sequences and micro-batches, log-probabilities."""
