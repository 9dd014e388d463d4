"""Reports of a run: events, step metrics and thumbnails."""
