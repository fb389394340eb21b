"""INT8 for an embedder without a quantised graph: NNCF's, calibrated on the gallery."""

import logging
from importlib import import_module
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from unified_embedding.errors import BuildError

CALIBRATION_PICTURES: Final = 360


def quantise(network: ov.Model, pixels: NDArray[np.uint8]) -> ov.Model:
    """Quantise weights and activations of `network` to INT8.

    LayerNorm and what else loses too much stays in floating point (NNCF's ignored patterns).

    Args:
        network: the fp32 embedder; batch size free.
        pixels: uint8 [N, S, S, 3]; `CALIBRATION_PICTURES` of them, evenly spread, are used.

    Raises:
        BuildError: nncf is not installed.
    """
    nncf = _nncf()
    step = max(1, len(pixels) // CALIBRATION_PICTURES)
    chosen = pixels[::step][:CALIBRATION_PICTURES]
    dataset = nncf.Dataset([picture[None] for picture in chosen])
    # NNCF's default, the fast correction, flips a fifth more bits of the code (Lite0).
    quantised: ov.Model = nncf.quantize(
        network, dataset, subset_size=len(chosen), fast_bias_correction=False
    )
    return quantised


def inputs() -> dict[str, str]:
    """What decides the quantised network's bits. Raises BuildError."""
    _nncf()
    pictures = f"{CALIBRATION_PICTURES} pictures, every layer's bias corrected in turn"
    return {"nncf": version("nncf"), "calibration": pictures}


def _nncf() -> Any:
    # Where torch is installed, NNCF imports it, and it would report that there is no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        nncf = import_module("nncf")
    except ImportError:
        raise BuildError(
            "PRECISION=int8 needs embedder.int8.onnx beside embedder.onnx: make quantise MODEL=... "
            "writes it; without it, the Python package nncf: make engine MODEL=... PRECISION=int8 "
            "installs it, as does pip install -c constraints.txt nncf"
        ) from None
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf
