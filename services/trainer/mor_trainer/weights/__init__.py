"""Weight versions: files, publication, and broadcast to engines."""
