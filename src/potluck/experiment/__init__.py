"""An experiment: its file, what it resolves to, what is built from it, its runs and the folder that each leaves."""
