"""Figures of the privacy page: what attacks learn from answers, and what limits against them cost."""
