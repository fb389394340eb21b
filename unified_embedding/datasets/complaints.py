"""Pydantic's complaints as sentences."""

from pydantic import ValidationError

from unified_embedding.errors import shown


def problems_of(error: ValidationError) -> str:
    """What pydantic found wrong in a configuration, and the values given, in one line."""
    found = []
    for entry in error.errors(include_url=False):
        where = ".".join(str(part) for part in entry["loc"])
        message = entry["msg"].removeprefix("Value error, ")
        given = "" if isinstance(entry["input"], dict) else f" (given: {shown(entry['input'])})"
        found.append(f"{where}: {message}{given}" if where else message)
    return "; ".join(found)
