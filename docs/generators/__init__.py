"""Generators of pages and of parts of pages."""
