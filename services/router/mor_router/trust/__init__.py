"""Whether a client is what its answers at the fit made it look like: anchors in disguise, drift, quarantine."""
