"""`make engine`: compile an embedder, hold it against the gates, install it for Triton."""

import typer

from unified_embedding.cli.engine import main

if __name__ == "__main__":
    typer.run(main)
