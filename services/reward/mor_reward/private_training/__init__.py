"""Training under differential privacy: units, accounting, noise, the linear part, DP-SGD and the noisy figures."""
