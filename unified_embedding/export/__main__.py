"""`python -m unified_embedding.export`."""

import typer

from unified_embedding.export.export import main

typer.run(main)
