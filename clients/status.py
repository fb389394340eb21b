"""Is the server up, what does it serve, and how fast is one picture?"""

from unified_embedding.cli.status import program

if __name__ == "__main__":
    program()
