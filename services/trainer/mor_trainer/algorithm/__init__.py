"""Pure mathematics of policy optimisation: rewards in, a loss and its gradient out."""
