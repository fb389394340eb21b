"""Fill docs/performance.md from results/: every table and plot there comes from a run."""

from unified_embedding.load.performance_page import program

if __name__ == "__main__":
    program()
