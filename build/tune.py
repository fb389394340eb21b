"""`make tune`: find how Triton runs the installed engine best on this machine, and keep that."""

from unified_embedding.cli.tune import program

if __name__ == "__main__":
    program()
