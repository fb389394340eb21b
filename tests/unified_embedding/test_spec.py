import json
from dataclasses import replace
from pathlib import Path

import pytest

from unified_embedding import EmbedderSpec, Preprocessing
from unified_embedding.errors import CodeError, SpecError

SPEC = EmbedderSpec(
    name="example",
    trunk="tf_efficientnet_lite0",
    dim=1280,
    weights="imagenet-1k",
    graph_sha256="ab" * 32,
    preprocessing=Preprocessing(),
    license="Apache-2.0",
)


def test_saved_and_loaded_unchanged(tmp_path: Path) -> None:
    SPEC.save(tmp_path)
    assert EmbedderSpec.load(tmp_path) == SPEC
    assert json.loads((tmp_path / "spec.json").read_text())["version"] == SPEC.version


def test_version_follows_what_decides_the_vectors_and_nothing_else() -> None:
    same = [replace(SPEC, name="other"), replace(SPEC, license="MIT"), replace(SPEC, weights="x")]
    assert {spec.version for spec in same} == {SPEC.version}
    changed = [
        replace(SPEC, graph_sha256="cd" * 32),
        replace(SPEC, preprocessing=Preprocessing(size=160)),
        replace(SPEC, preprocessing=Preprocessing(resize="center_crop")),
        replace(SPEC, preprocessing=Preprocessing(interpolation="bicubic")),
    ]
    assert len({SPEC.version, *(spec.version for spec in changed)}) == 5


def test_what_it_is_compatible_with_is_stated_and_changes_no_version(tmp_path: Path) -> None:
    declared = replace(SPEC, compatible_with=("0123456789ab",))
    assert declared.version == SPEC.version
    declared.save(tmp_path)
    assert EmbedderSpec.load(tmp_path).compatible_with == ("0123456789ab",)
    said = json.loads((tmp_path / "spec.json").read_text())
    assert said["compatible_with"] == ["0123456789ab"]
    del said["compatible_with"]  # As earlier releases wrote it.
    (tmp_path / "spec.json").write_text(json.dumps(said))
    assert EmbedderSpec.load(tmp_path) == SPEC
    for wrong in (["v2"], [7], 7):
        (tmp_path / "spec.json").write_text(json.dumps({**said, "compatible_with": wrong}))
        with pytest.raises(SpecError):
            EmbedderSpec.load(tmp_path)


def test_an_edited_file_is_refused(tmp_path: Path) -> None:
    SPEC.save(tmp_path)
    path = tmp_path / "spec.json"
    path.write_text(path.read_text().replace('"size": 224', '"size": 192'))
    with pytest.raises(SpecError, match="export the model again"):
        EmbedderSpec.load(tmp_path)


def test_missing_malformed_and_unknown_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="does not exist"):
        EmbedderSpec.load(tmp_path)
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(SpecError, match="not readable JSON"):
        EmbedderSpec.load(tmp_path)
    (tmp_path / "spec.json").write_text('{"name": "x", "colour": 1}')
    with pytest.raises(SpecError, match=r"missing .*'trunk'.*unknown \['colour'\]"):
        EmbedderSpec.load(tmp_path)
    with pytest.raises(SpecError, match="SHA-256"):
        replace(SPEC, graph_sha256="zz")
    with pytest.raises(CodeError, match="multiple of 8"):
        replace(SPEC, dim=1281)
