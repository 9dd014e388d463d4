"""The policy: loading, processed prompts, image features, sequences and micro-batches, log-probabilities."""
