"""Configuration files and overrides: what they accept, and what they say when they do not."""

from pathlib import Path

import pytest

from unified_embedding.errors import TrainingError
from unified_embedding.training.config import Config, load_config

CONFIGS = Path(__file__).parents[2] / "configs"
MINIMAL = "run: out/r\ndata: {manifest: m.csv}\nbatch: 6\n"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize(
    "path",
    sorted(set(CONFIGS.glob("*.yaml")) - {CONFIGS / "evaluate.yaml", CONFIGS / "compare.yaml"}),
    ids=lambda p: p.name,
)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert load_config(path).run.startswith("out/")


def test_pinterest_has_the_shape_of_the_paper() -> None:
    config = load_config(CONFIGS / "pinterest.yaml")
    assert config.model.trunk == "seresnext101_32x4d"
    assert config.model.weights == "random"
    assert config.sampled == {"browse_class": 2048, "shop_instance": 2048}
    assert config.temperature == 0.05


def test_overrides_reach_every_level_and_are_typed(minimal: Path) -> None:
    config = load_config(
        minimal,
        [
            "seed=7",
            "schedule.full.steps=100",
            "schedule.rate=1e-4",
            "sampled.browse_class=5",
            "data.tasks=[browse, shop]",
            "model.fixed_map=true",
            "images_per_class=",
        ],
    )
    assert config.seed == 7
    assert config.schedule.full.steps == 100
    assert config.schedule.rate == 1e-4
    assert config.sampled == {"browse_class": 5}
    assert config.data.tasks == ["browse", "shop"]
    assert config.model.fixed_map
    assert config.images_per_class is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "'seed' is not key=value"),
        ("=3", "is not key=value"),
        ("sed=1", "sed: Extra inputs are not permitted"),
        ("model.trnk=x", r"model\.trnk"),
        ("seed=fast", r"seed: .*integer.*'fast'"),
        ("batch=7", "batch 7 does not divide among 3 tasks"),
        ("data.tasks=[browse, browse]", "each once"),
        ("data.tasks=[sell]", "some of"),
        ("data.labels=[]", "some of"),
        ("data.manifest=", "give data.manifest=PATH"),
        ("sampled.color=4", r"sampled names \['color'\]"),
        ("heads.color.weight=2", r"heads names \['color'\]"),
        ("heads.browse_class.weight=0", r"heads\.browse_class\.weight"),
        ("heads.browse_class.loss=hinge", r"heads\.browse_class\.loss"),
        ("heads.browse_class.margin=0.2", "normalized-softmax has none"),
        ("class_means=0", "class_means"),
        ("accumulate=1", "accumulate"),
        ("data.shared_labels={color: [shop]}", "'color' is none of labels"),
        ("data.shared_labels={camera_category: [camera]}", r"some of \['browse', 'shop'\]"),
        ("data.shared_labels={camera_category: []}", r"shared_labels\.camera_category"),
        ("sampled.browse_class=0", r"sampled\.browse_class"),
        ("run.folder=x", "run is a value, not a section"),
        ("seed=[1", "no readable value"),
        ("precision=fp8", "precision"),
        ("data.crop_area=0", r"data\.crop_area"),
    ],
)
def test_bad_overrides_name_the_key(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        load_config(minimal, [override])


@pytest.mark.parametrize(
    "other",
    ["heads.browse_class.weight=2", "heads.browse_class.loss=cosface", "precision=fp16"],
)
def test_gradnorm_excludes_given_weights_and_scaled_gradients(minimal: Path, other: str) -> None:
    assert load_config(minimal, ["gradnorm={}"]).gradnorm is not None
    with pytest.raises(TrainingError, match="gradnorm"):
        load_config(minimal, ["gradnorm={}", other])


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "keys and values"), ("a: [", "not YAML"), ("seed: 1\n", "run: Field required")],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=message):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nowhere\.yaml does not exist"):
        load_config(tmp_path / "nowhere.yaml")


def test_accumulating_excludes_statistics_of_parts(minimal: Path) -> None:
    with pytest.raises(TrainingError, match=r"keep model\.frozen_batch_norm"):
        load_config(minimal, ["accumulate=2", "model.frozen_batch_norm=false"])


def test_identity_holds_what_changes_results_and_nothing_else(minimal: Path) -> None:
    base = load_config(minimal).identity()
    for free in ("run=elsewhere", "threads=3", "data.workers=2", "trace=true", "bank=mapped"):
        assert load_config(minimal, [free]).identity() == base
    for fixed in (
        "seed=1",
        "schedule.rate=0.5",
        "precision=bf16",
        "model.frozen=[conv_stem]",
        "class_means=8",
        "accumulate=2",
        "data.shared_labels={camera_category: [shop]}",
    ):
        assert load_config(minimal, [fixed]).identity() != base


def test_unset_later_settings_leave_the_identity_of_earlier_runs_as_it_was(minimal: Path) -> None:
    """Sections are compared whole, so that a key that they did not have would refuse to resume."""
    fields = load_config(minimal, ["heads.browse_class.weight=2"]).identity()
    assert "shared_labels" not in fields["data"]
    assert fields["heads"] == {"browse_class": {"weight": 2, "temperature": None}}
    assert fields["class_means"] is None  # at the top, what is missing equals None


def test_a_config_survives_its_own_dump(minimal: Path, tmp_path: Path) -> None:
    import yaml

    config = load_config(minimal, ["sampled.shop_instance=9", "schedule.milestones=[0.25, 0.5]"])
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert isinstance(config, Config)
    assert load_config(again) == config
