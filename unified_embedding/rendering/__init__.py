"""Synthetic photographs of 3D models, for training and for the demo (extra: train)."""
