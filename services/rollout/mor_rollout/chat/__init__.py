"""The OpenAI-compatible chat API on the current policy."""
