"""Devices behind Flower: the engine at the server, the device's answers, and Flower's processes.

polling.py and superlink.py rest on private parts of Flower, and say which; nothing else here does.
"""
