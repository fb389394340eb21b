"""`make fuzz`: malformed input of every kind, and what must hold beside it."""

from unified_embedding.cli.fuzz import program

if __name__ == "__main__":
    program()
