import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unified_embedding import CodeError, asymmetric, hamming, pack, unpack
from unified_embedding.codes import code_bytes

FLOATS = st.floats(-1e6, 1e6, width=32)


def embeddings(rows: int = 3, dim: int = 24) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float32, (rows, dim), elements=FLOATS)


def test_bit_is_set_above_zero_only_and_msb_first() -> None:
    row = np.array([[1.0, 0.0, -0.0, -1.0, 1e-45, -1e-45, 2.0, -3.0]], dtype=np.float32)
    assert pack(row).tolist() == [[0b10001010]]


@given(embeddings())
def test_pack_is_numpy_packbits_of_the_sign(rows: np.ndarray) -> None:
    assert (pack(rows) == np.packbits((rows > 0).astype(np.uint8), axis=-1)).all()
    assert (unpack(pack(rows)) == (rows > 0)).all()


@given(embeddings(2), embeddings(4))
def test_hamming_counts_differing_bits(left: np.ndarray, right: np.ndarray) -> None:
    expected = [[sum(a != b) for b in (right > 0)] for a in (left > 0)]
    assert hamming(pack(left), pack(right)).tolist() == expected


def test_hamming_over_many_rows_equals_the_dot_product_of_signs() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(70, 2048)), rng.normal(size=(3000, 2048))
    signs = np.sign(left) @ np.sign(right).T
    assert (hamming(pack(left), pack(right)) == (2048 - signs) / 2).all()


def test_odd_code_width() -> None:
    assert hamming(np.array([[255]], np.uint8), np.array([[0], [1]], np.uint8)).tolist() == [[8, 7]]


@given(embeddings(2), embeddings(3))
def test_asymmetric_is_the_query_against_signs(query: np.ndarray, stored: np.ndarray) -> None:
    expected = query.astype(np.float64) @ np.where(stored > 0, 1.0, -1.0).T
    assert np.allclose(asymmetric(query, pack(stored)), expected, rtol=1e-4, atol=1e-1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_without_a_sign_bit_is_refused(bad: float) -> None:
    rows = np.ones((3, 8), dtype=np.float32)
    rows[1, 5] = bad
    with pytest.raises(CodeError, match="row 1 holds NaN or infinity"):
        pack(rows)


def test_wrong_shapes_and_types_are_refused() -> None:
    with pytest.raises(CodeError, match="expected float embeddings"):
        pack(np.ones((2, 8), dtype=np.int32))
    with pytest.raises(CodeError, match="multiple of 8"):
        pack(np.ones((2, 9), dtype=np.float32))
    with pytest.raises(CodeError, match="uint8"):
        hamming(np.ones((1, 2), np.int8), np.ones((1, 2), np.uint8))
    with pytest.raises(CodeError, match="2 and 3 bytes"):
        hamming(np.ones((1, 2), np.uint8), np.ones((1, 3), np.uint8))
    with pytest.raises(CodeError, match="does not fit"):
        asymmetric(np.ones((1, 8), np.float32), np.ones((1, 2), np.uint8))
    with pytest.raises(CodeError, match="multiple of 8"):
        code_bytes(0)
