"""Lay out the static models for a production server."""

from unified_embedding.cli.production_repository import program

if __name__ == "__main__":
    program()
