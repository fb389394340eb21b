"""`make engine`: compile an embedder, hold it against the gates, install it for Triton."""

from unified_embedding.cli.engine import program

if __name__ == "__main__":
    program()
