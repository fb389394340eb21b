"""`python -m unified_embedding.evaluation`."""

import typer

from unified_embedding.evaluation.evaluate import main

typer.run(main)
