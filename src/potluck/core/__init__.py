"""The vocabulary that every other layer speaks: trees, devices, tasks, seeds and errors."""
