"""``python -m potluck.cli``."""

from potluck.cli.commands import main

main()
