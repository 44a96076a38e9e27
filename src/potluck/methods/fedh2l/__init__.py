"""FedH2L: the method (method.py), its shared seeds, posteriors as whole numbers, and the projection of gradients."""

from potluck.methods.fedh2l.method import FedH2L

METHODS = {"fedh2l": FedH2L}
