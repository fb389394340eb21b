"""The names of the wire contract, and those of further embedders beside them."""

from pathlib import Path

import pytest

from unified_embedding.names import DEFAULT, Names


def test_without_a_prefix_they_are_those_of_the_wire_contract() -> None:
    assert DEFAULT.models == ("preprocess", "embedder", "binarizer", "unified_embedding")
    assert Names.of("unified_embedding") == Names.of_preprocess("preprocess") == DEFAULT


def test_all_of_an_embedder_carry_its_prefix() -> None:
    names = Names.of("v2-unified_embedding")
    assert names.models == ("v2-preprocess", "v2-embedder", "v2-binarizer", names.ensemble)
    assert Names.of_preprocess(names.preprocess) == names


@pytest.mark.parametrize("prefix", ["-", "../", "a b", "a/", "é", "x" * 65, ".hidden", "a\n"])
def test_a_prefix_that_makes_no_model_name_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"prefix .*: give up to 64 letters"):
        Names(prefix)


@pytest.mark.parametrize("model", ["embedder", "v2-embedder", "", "unified_embedding2"])
def test_only_an_ensemble_can_be_asked(model: str) -> None:
    with pytest.raises(ValueError, match="give the name of an ensemble, 'unified_embedding'"):
        Names.of(model)


def test_a_repository_tells_its_embedders(tmp_path: Path) -> None:
    assert Names.in_repository(tmp_path / "none") == Names.in_repository(tmp_path) == []
    for name in ("v2-unified_embedding", "unified_embedding", "theirs"):
        (tmp_path / name).mkdir()
    (tmp_path / "x-unified_embedding").touch()
    assert Names.in_repository(tmp_path) == [DEFAULT, Names("v2-")]
