"""The commands of ``mor``, one file for each noun."""
