"""Entry of the command ``mor-router``, also as ``python -m mor_router``."""

from mor_core.program_start import run_program


def main() -> None:
    run_program("mor_router.cli")


if __name__ == "__main__":
    main()
