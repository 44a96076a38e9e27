"""``python -m potluck``."""

from potluck.cli.commands import main

main()
