"""What makes an engine: targets, gates, tuning, and what is installed for Triton (extra: build)."""
