"""Entry of ``python -m mor_client``: the command ``mor``."""

from mor_client.cli import main

main()
