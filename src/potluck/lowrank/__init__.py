"""Low rank: weights as matrices, their decomposition, layers that run as two, and fusion of unequal ranks."""
