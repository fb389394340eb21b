"""`make quantise`: an embedder's convolutions in 8 bits, beside its float graph."""

import typer

from unified_embedding.cli.quantise import main

if __name__ == "__main__":
    typer.run(main)
