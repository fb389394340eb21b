"""Pydantic's complaints as sentences."""

from pydantic import ValidationError


def problems_of(error: ValidationError) -> str:
    """What pydantic found wrong in a configuration, in one line."""
    found = []
    for entry in error.errors(include_url=False):
        where = ".".join(str(part) for part in entry["loc"])
        message = entry["msg"].removeprefix("Value error, ")
        found.append(f"{where}: {message}" if where else message)
    return "; ".join(found)
