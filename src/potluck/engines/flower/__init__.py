"""Devices behind Flower: the engine at the server, the device's answers, and Flower's processes.

private.py holds all that we use of Flower beside its public interface, and warm.py imitates one of its programs;
nothing else here does.
"""
