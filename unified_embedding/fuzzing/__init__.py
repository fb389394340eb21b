"""Malformed input of every kind, beside good requests to a real server (`make fuzz`)."""
