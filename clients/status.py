"""Is the server up, what does it serve, and how fast is one picture?"""

try:
    from unified_embedding.cli.main import run
except ModuleNotFoundError:
    raise SystemExit(
        "status.py: this Python has no unified_embedding; activate the environment first: "
        ". .venv/bin/activate (make env creates it)"
    ) from None

if __name__ == "__main__":
    run("status")
