"""Entry of the command ``mor-rollout``, also as ``python -m mor_rollout``."""

from mor_core.program_start import run_program


def main() -> None:
    run_program("mor_rollout.cli")


if __name__ == "__main__":
    main()
