"""Labels of products: the catalogue's category, and a product class read from the name."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from unified_embedding.rendering.furniture import Product

MIN_PER_CATEGORY: Final = 10
MIN_PER_CLASS: Final = 3
_NO_CATEGORY: Final = "Miscellaneous"

_SIDE_REMARK: Final = re.compile(r"\(.*?\)|\d+")
_FURTHER: Final = re.compile(r"\b(?:with|of|and|for|in|on)\b|[,&]")


def camera_categories(products: Sequence[Product]) -> dict[str, str]:
    """Product id -> category, "" for Miscellaneous and for categories of under 10 products."""
    counts = Counter(product.category for product in products)
    return {
        p.id: p.category
        if p.category != _NO_CATEGORY and counts[p.category] >= MIN_PER_CATEGORY
        else ""
        for p in products
    }


def shop_classes(products: Sequence[Product]) -> dict[str, str]:
    """Product id -> head noun of its name, "" where fewer than 3 products share it."""
    nouns = {product.id: head_noun(product.name) for product in products}
    counts = Counter(nouns.values())
    return {
        identifier: noun if noun and counts[noun] >= MIN_PER_CLASS else ""
        for identifier, noun in nouns.items()
    }


def head_noun(name: str) -> str:
    """The noun that says what a thing is: "Round table" and "Table with drawers" give "table".

    Lower case, singular in a simple way; "" for a name without letters.
    """
    plain = _FURTHER.split(_SIDE_REMARK.sub(" ", name.lower()))[0]
    words: list[str] = re.findall(r"[^\W\d_]+", plain)
    if not words:
        return ""
    noun = words[-1]
    if noun.endswith("sses"):
        return noun[:-2]
    if len(noun) > 3 and noun.endswith("s") and not noun.endswith("ss"):
        return noun[:-1]
    return noun
