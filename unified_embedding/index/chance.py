"""From which distance on a hit may be chance: a rule from the index's own codes.

Two pictures that have nothing in common differ in about half of the bits, more or less. How much
more or less is measured: the distances of pairs of a sample of the index's rows have a mean m and
a standard deviation s. They spread like a binomial of m (1 - m) / s^2 independent bits, far fewer
than the code has, because its bits go together (J. Daugman, "How iris recognition works", IEEE
TCSVT 14(1), 2004, fits codes of irises so). With its normal approximation, a picture that is like
none of N rows has one of them within

    m + s z,  where z is the 1/N quantile of the standard normal distribution

in the mean. Nearer than that, a hit is more than the luck of so many rows.
"""

import statistics
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.codes import hamming

SAMPLE: Final = 400  # 79,800 pairs


def chance_distance(codes: NDArray[np.uint8], rows: int) -> int | None:
    """The distance in bits from which on a hit may be chance.

    Args:
        codes: a sample of the index's codes, uint8 [n, B]; equal ones count once.
        rows: rows that are searched.

    Returns:
        None where too few different codes are known to tell, or nothing is nearer than chance.
    """
    different = np.unique(codes, axis=0)
    if len(different) < 10:
        return None
    pairs = hamming(different, different)[np.triu_indices(len(different), 1)]
    quantile = statistics.NormalDist().inv_cdf(1 / max(rows, 2))
    distance = int(np.ceil(pairs.mean() + quantile * pairs.std()))
    return distance if distance > 0 else None
