"""Training, evaluation and export of embedders (extra: train)."""
