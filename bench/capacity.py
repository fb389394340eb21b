"""`make capacity`: how many requests per second this server takes, and at what latency."""

from unified_embedding.load.capacity import program

if __name__ == "__main__":
    program()
