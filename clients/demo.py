"""`make demo`: serve the demo gallery for real, search it, print a table, draw a contact sheet."""

from unified_embedding.cli.demo import program

if __name__ == "__main__":
    program()
