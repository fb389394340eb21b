"""Embed picture files through the server: folders and globs in, Parquet, NPZ or JSONL out."""

from unified_embedding.cli.embed import program

if __name__ == "__main__":
    program()
