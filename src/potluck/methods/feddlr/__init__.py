"""FedDLR: the method (method.py), weights as they travel (packing.py), and what devices hold (reference.py)."""

from potluck.methods.feddlr.method import FedDLR

METHODS = {"feddlr": FedDLR}
