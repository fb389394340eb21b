"""The search page: drop a photo, drag a box on it, see what is alike."""

try:
    from unified_embedding.cli.main import run
except ModuleNotFoundError:
    raise SystemExit(
        "page.py: this Python has no unified_embedding; activate the environment first: "
        ". .venv/bin/activate (make env creates it)"
    ) from None

if __name__ == "__main__":
    run("page")
