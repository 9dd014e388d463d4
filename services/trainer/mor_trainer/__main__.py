"""``python -m mor_trainer``: the command ``mor-trainer``."""

from mor_trainer.cli import main

main()
