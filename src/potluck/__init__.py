"""Potluck trains one model together on a fleet of unequal devices over thin links."""

__version__ = "0.1.0"
