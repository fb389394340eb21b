"""Build an index from a back-filled corpus, look at it, export it."""

from unified_embedding.cli.index import program

if __name__ == "__main__":
    program()
