"""What the Locust files and the benchmarks share: systems, tables, recordings, reports."""
