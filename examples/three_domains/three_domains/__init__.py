"""Real pictures, exactly checkable answers and a small base VLM for the three-domain demonstration."""
