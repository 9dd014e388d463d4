"""Pure mathematics: scores and anchors in, weights, rewards and evidence out. No file here waits, logs or stores."""
