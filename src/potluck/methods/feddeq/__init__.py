"""FedDEQ: the method (method.py), its equation's options, the watch over its solutions, and the fusion of replies."""

from potluck.methods.feddeq.method import FedDEQ

METHODS = {"feddeq": FedDEQ}
