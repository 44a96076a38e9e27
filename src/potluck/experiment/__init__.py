"""The experiment: its file, what is built from it, and the run folder."""
