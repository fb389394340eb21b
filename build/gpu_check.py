"""`make gpu-check`: everything that needs an NVIDIA GPU, in one command, into one document."""

from unified_embedding.cli.gpu_check import program

if __name__ == "__main__":
    program()
