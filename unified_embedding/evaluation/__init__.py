"""Retrieval on unseen identities: what an embedder is judged by (`make evaluate`)."""
