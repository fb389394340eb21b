"""Embed a whole corpus through running servers: Ray in front, Parquet shards behind."""

from unified_embedding.cli.backfill import program

if __name__ == "__main__":
    program()
