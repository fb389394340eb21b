"""How Triton runs an engine best on one machine: trials, their report, and what is kept."""
