"""HTML reports, each a page that needs nothing else, from `templates/`."""

import json
from functools import partial
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

_TEMPLATES: Final = Environment(
    loader=PackageLoader("unified_embedding.measure"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["pretty"] = partial(json.dumps, indent=2)


def render(template: str, **values: Any) -> str:
    """A template's page, with every value escaped."""
    return _TEMPLATES.get_template(template).render(values)
