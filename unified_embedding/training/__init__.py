"""Training embedders: trunk, heads, data order, checkpoints (extra: train)."""
