"""Find pictures like one, or like a part of one."""

try:
    from unified_embedding.cli.main import run
except ModuleNotFoundError:
    raise SystemExit(
        "search.py: this Python has no unified_embedding; activate the environment first: "
        ". .venv/bin/activate (make env creates it)"
    ) from None

if __name__ == "__main__":
    run("search")
