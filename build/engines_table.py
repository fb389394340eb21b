"""What each engine does to embeddings and codes, and how fast it is."""

import typer

from unified_embedding.cli.engines_table import main

if __name__ == "__main__":
    typer.run(main)
