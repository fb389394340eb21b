"""Find pictures like one, or like a part of one."""

from unified_embedding.cli.search import program

if __name__ == "__main__":
    program()
