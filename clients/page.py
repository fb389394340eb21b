"""The search page: drop a photo, drag a box on it, see what is alike."""

from unified_embedding.cli.page import program

if __name__ == "__main__":
    program()
