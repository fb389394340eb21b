"""What each engine does to embeddings and codes, and how fast it is."""

from unified_embedding.cli.engines_table import program

if __name__ == "__main__":
    program()
