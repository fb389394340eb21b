"""`make gpu-check`: everything that needs an NVIDIA GPU, in one command, into one document."""

import typer

from unified_embedding.cli.gpu_check import main

if __name__ == "__main__":
    typer.run(main)
