"""Entry of the command ``mor-trainer``, also as ``python -m mor_trainer``."""

from mor_core.program_start import run_program


def main() -> None:
    run_program("mor_trainer.cli")


if __name__ == "__main__":
    main()
