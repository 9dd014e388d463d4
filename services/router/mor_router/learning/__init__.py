"""Gate fits: from anchors to an active gate version, and online refits that follow the policy."""
