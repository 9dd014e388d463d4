"""From anchors to a gate version in force: objectives, anchor scores, fits and online refits."""
