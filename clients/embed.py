"""Embed picture files through the server: folders and globs in, Parquet, NPZ or JSONL out."""

try:
    from unified_embedding.cli.main import run
except ModuleNotFoundError:
    raise SystemExit(
        "embed.py: this Python has no unified_embedding; activate the environment first: "
        ". .venv/bin/activate (make env creates it)"
    ) from None

if __name__ == "__main__":
    run("embed")
