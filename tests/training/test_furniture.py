"""Reading furniture libraries from a folder and from a Debian package."""

from pathlib import Path

import pytest
from made_up_furniture import deb, libraries

from unified_embedding.errors import DataError
from unified_embedding.rendering.furniture import LICENSES, credits_table, read_products, unpack


def test_package_and_folder_give_the_same_products(tmp_path: Path) -> None:
    unpack(deb(tmp_path / "f.deb"), tmp_path / "one")
    unpack(libraries(tmp_path / "sh3f"), tmp_path / "two")
    products = read_products(tmp_path / "one")
    assert products == read_products(tmp_path / "two")
    assert len(products) == 3 * len(LICENSES)
    first = products[0]
    assert (first.id, first.license) == ("scopia-box-1", "CC-BY-3.0")
    assert first.size == pytest.approx((0.5, 0.95, 0.6))
    assert (first.elevation, products[2].elevation) == (0, pytest.approx(1.2))
    assert (tmp_path / "one" / first.model).is_file()
    assert (tmp_path / "one" / first.picture).is_file()


def test_credits_name_every_creator_and_product(tmp_path: Path) -> None:
    unpack(libraries(tmp_path / "sh3f"), tmp_path / "one")
    products = read_products(tmp_path / "one")
    table = credits_table(products)
    assert all(f"`{product.id}`" in table for product in products)
    assert "| Maker 1 | CC-BY-3.0-US |" in table
    assert "publicdomain/zero/1.0" in table


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (None, "does not exist; get it with `apt-get download"),
        (b"PK", "is not a Debian package"),
        (b"!<arch>\n", "holds no data.tar"),
    ],
)
def test_wrong_file_is_refused(tmp_path: Path, contents: bytes | None, says: str) -> None:
    path = tmp_path / "f.deb"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(DataError, match=says):
        unpack(path, tmp_path / "out")


def test_damaged_package_is_refused(tmp_path: Path) -> None:
    path = deb(tmp_path / "f.deb")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="damaged"):
        unpack(path, tmp_path / "out")


def test_missing_library_is_named(tmp_path: Path) -> None:
    folder = libraries(tmp_path / "sh3f")
    (folder / "KatorLegaz.sh3f").unlink()
    with pytest.raises(DataError, match="KatorLegaz"):
        unpack(folder, tmp_path / "out")
