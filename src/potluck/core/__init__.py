"""The vocabulary that every other layer speaks: trees, devices, contexts, seeds, catalogues and errors."""
