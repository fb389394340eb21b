"""Build an index from a back-filled corpus, look at it, export it."""

try:
    from unified_embedding.cli.main import run
except ModuleNotFoundError:
    raise SystemExit(
        "index.py: this Python has no unified_embedding; activate the environment first: "
        ". .venv/bin/activate (make env creates it)"
    ) from None

if __name__ == "__main__":
    run("index")
