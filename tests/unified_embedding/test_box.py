"""A crop box travels as text and arrives as the same box."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unified_embedding.image import Box, parse_crops

_fractions = st.floats(0, 1)


@given(
    st.lists(_fractions, min_size=2, max_size=2, unique=True).map(sorted),
    st.lists(_fractions, min_size=2, max_size=2, unique=True).map(sorted),
)
def test_a_box_arrives_with_all_its_digits(across: list[float], down: list[float]) -> None:
    box = Box(across[0], down[0], across[1], down[1])
    assert parse_crops(str(box), 1) == [box]
    assert parse_crops(f"{box};", 2) == [box, None]


def test_boxes_that_lost_their_digits() -> None:
    assert str(Box(0.9999996, 0, 1, 1)) == "0.9999996,0,1,1"
    assert str(Box(0, 0.5, 1.0, 1)) == "0,0.5,1,1"
    narrow = Box(np.float64(1 / 3), np.float32(0.1), 1, 1)
    assert parse_crops(str(narrow), 1) == [narrow]
