"""Engines carry frames between the one round loop and the devices."""
