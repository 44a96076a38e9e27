"""Who gets which training samples: the rules as settings (rules.py), and what carries each of them out."""
