"""Nets of the field, local training, and what a tier's net looks like."""
