"""Encoded bytes to the uint8 pixels an embedder takes: the one preprocessing.

Serving, training, gates and tests all call `load_pixels`; there is no second path.
"""

from unified_embedding.image.decoding import (
    PREPROCESSING_REVISION,
    decode,
    load_pixels,
    measure,
)
from unified_embedding.image.formats import FORMATS, SUFFIXES
from unified_embedding.image.geometry import Box, Preprocessing, parse_crops
from unified_embedding.image.limits import DEFAULT_LIMITS, SETTINGS, Limits

__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "PREPROCESSING_REVISION",
    "SETTINGS",
    "SUFFIXES",
    "Box",
    "Limits",
    "Preprocessing",
    "decode",
    "load_pixels",
    "measure",
    "parse_crops",
]
