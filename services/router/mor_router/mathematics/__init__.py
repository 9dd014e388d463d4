"""Pure mathematics from scores and anchors to weights, rewards and evidence. No module here waits, logs or stores."""
