"""One update of the policy: micro-batches, optimiser, checkpoint."""
