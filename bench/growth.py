"""`make growth`: what a picture costs as the work grows."""

from unified_embedding.load.growth import program

if __name__ == "__main__":
    program()
