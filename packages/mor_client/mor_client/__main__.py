"""Entry of the command ``mor``, also as ``python -m mor_client``."""

from mor_core.program_start import run_program


def main() -> None:
    run_program("mor_client.cli")


if __name__ == "__main__":
    main()
