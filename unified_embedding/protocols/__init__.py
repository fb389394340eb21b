"""Retrieval protocols: which pictures are searched by which, and how hits are counted."""
