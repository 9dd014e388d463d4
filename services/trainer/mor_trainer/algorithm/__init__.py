"""Mathematics of policy optimisation, pure: rewards in, a loss and its gradient out."""
