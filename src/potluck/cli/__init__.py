"""The command line: commands.py gathers the commands, the other files are a group of them each, or what they show."""

from potluck.cli.commands import app, main

__all__ = ["app", "main"]
