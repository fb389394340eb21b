"""`make demo`: serve the demo gallery for real, search it, print a table, draw a contact sheet."""

import typer

from unified_embedding.cli.demo import main

if __name__ == "__main__":
    typer.run(main)
