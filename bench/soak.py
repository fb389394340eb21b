"""`make soak`: the same load for ten minutes; does the server grow, or get slower?"""

from unified_embedding.load.soak import program

if __name__ == "__main__":
    program()
