"""A trained embedder as files: ONNX, spec, weights and card (extra: train)."""
