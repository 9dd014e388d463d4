"""The training process: groups out and in, the update, what it writes and tells."""
