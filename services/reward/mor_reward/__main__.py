"""Entry of the command ``mor-reward``, also as ``python -m mor_reward``."""

from mor_core.program_start import run_program


def main() -> None:
    run_program("mor_reward.cli")


if __name__ == "__main__":
    main()
