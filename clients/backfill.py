"""Embed a whole corpus through running servers, into Parquet shards."""

from unified_embedding.cli.backfill import program

if __name__ == "__main__":
    program()
