"""Checkpoints: whole or not at all, and an embedder rebuilt from one."""

from pathlib import Path

import pytest
import torch

from unified_embedding.datasets import made_up
from unified_embedding.errors import TrainingError
from unified_embedding.image import Preprocessing
from unified_embedding.training import checkpoint
from unified_embedding.training.checkpoint import EmbedderRecipe
from unified_embedding.training.journal import Table


def recipe(**changes: object) -> EmbedderRecipe:
    fields = {
        "trunk": "resnet10t",
        "mean": (10.0, 20.0, 30.0),
        "std": (50.0, 60.0, 70.0),
        "layer_norm": True,
        "fixed_map": True,
        "preprocessing": Preprocessing(size=48, interpolation="bicubic"),
        "weights": "random",
        "license": "Apache-2.0",
        **changes,
    }
    return EmbedderRecipe(**fields)  # type: ignore[arg-type]


def test_an_embedder_comes_back_as_it_was(tmp_path: Path) -> None:
    model = recipe().build().eval()
    values = checkpoint.embedder_values(recipe(), model.state_dict(), {"steps": 3})
    checkpoint.save(values, tmp_path / "best.pt")
    loaded, found, summary = checkpoint.load_embedder(tmp_path / "best.pt")
    assert found == recipe()
    assert summary == {"steps": 3}
    pixels = torch.from_numpy(made_up.pixels(2, 48))
    with torch.no_grad():
        assert torch.equal(loaded(pixels), model(pixels))
    assert not loaded.training


def test_a_save_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save({"step": 1}, path)
    with pytest.raises(AttributeError):
        checkpoint.save({"step": 2, "bad": lambda: None}, path)
    assert checkpoint.read(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(TrainingError, match="does not exist"):
        checkpoint.read(path)
    path.write_bytes(b"junk")
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        checkpoint.read(path)
    torch.save({"step": 1}, path)
    with pytest.raises(TrainingError, match="is not a checkpoint of this program's format"):
        checkpoint.read(path)


@pytest.mark.parametrize("change", [{"trunk": "resnet18"}, {"fixed_map": False}])
def test_a_recipe_that_does_not_fit_its_weights_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    state = recipe().build().state_dict()
    values = checkpoint.embedder_values(recipe(**change), state, {})
    checkpoint.save(values, tmp_path / "best.pt")
    with pytest.raises(TrainingError, match="no embedder that can be rebuilt"):
        checkpoint.load_embedder(tmp_path / "best.pt")


def test_a_table_goes_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = Table(path, ["a", "b"], 0)
    for step in range(5):
        table.add(step, [repr(0.1 * step), "x"])
    table.close()
    with path.open("a") as file:
        file.write("5,0.5")  # cut off by the kill
    table = Table(path, ["a", "b"], 3)
    table.add(3, ["again", "y"])
    table.close()
    assert path.read_text().splitlines() == [
        "step,a,b",
        "0,0.0,x",
        "1,0.1,x",
        "2,0.2,x",
        "3,again,y",
    ]
