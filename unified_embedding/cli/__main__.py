"""`python -m unified_embedding.cli`: the same as `unified-embedding`."""

from unified_embedding.cli.main import program

if __name__ == "__main__":
    program()
