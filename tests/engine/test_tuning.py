"""What `make tune` leaves behind, and what `make engine` makes of it."""

import json
from pathlib import Path

import pytest

pytest.importorskip("openvino", reason="the extra `build` is not installed")

from unified_embedding.engine.embedder_config import EmbedderConfig
from unified_embedding.engine.openvino.target import OpenVinoTarget
from unified_embedding.engine.triton_config import render
from unified_embedding.engine.tuning import tuning
from unified_embedding.errors import BuildError
from unified_embedding.spec import EmbedderSpec

NAME = "a network on a processor"
CONFIG = EmbedderConfig(
    backend="python",
    kind="KIND_CPU",
    parameters={"inference_precision": "bf16", "threads": "2", "streams": "2", "slice": "4"},
)
TUNED = EmbedderConfig(
    backend="python",
    kind="KIND_CPU",
    instances=2,
    max_batch_size=32,
    queue_delay_us=200,
    parameters={"inference_precision": "bf16", "threads": "1", "streams": "1", "slice": "8"},
)


def test_what_was_saved_is_applied_to_its_own_network_alone(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    assert tuning.apply(CONFIG, NAME, file) == CONFIG
    tuning.save(TUNED, NAME, {"images_per_s": 1.0}, file)
    tuning.save(CONFIG, "another one", {}, file)
    assert tuning.apply(CONFIG, NAME, file) == TUNED
    assert tuning.apply(TUNED, "another one", file) == CONFIG
    assert tuning.apply(CONFIG, "a third", file) == CONFIG


def test_no_answer_depends_on_it(tmp_path: Path) -> None:
    """The precision is the engine's: a tuning neither holds nor changes it."""
    file = tmp_path / "tuning.json"
    tuning.save(TUNED, NAME, {}, file)
    entry = json.loads(file.read_text())[NAME]
    assert set(entry["parameters"]) == {"threads", "streams", "slice"}
    fp32 = EmbedderConfig("python", "KIND_CPU", parameters={"inference_precision": "f32"})
    assert tuning.apply(fp32, NAME, file).parameters["inference_precision"] == "f32"


def test_the_key_names_network_precision_and_processor(root: Path) -> None:
    spec = EmbedderSpec.load(root / "models/unified-embedder-lite0")
    key = tuning.key(spec, OpenVinoTarget("fp32"))
    assert key.startswith("tf_efficientnet_lite0, openvino fp32, ")
    assert key != tuning.key(spec, OpenVinoTarget("int8"))


def test_the_values_stand_in_the_configuration(root: Path) -> None:
    spec = EmbedderSpec.load(root / "models/unified-embedder-lite0")
    config = render(TUNED, spec, "openvino-bf16-0123456789ab")
    assert config.max_batch_size == 32
    assert [group.count for group in config.instance_group] == [2]
    assert config.dynamic_batching.max_queue_delay_microseconds == 200
    assert config.parameters["slice"].string_value == "8"


USABLE = {"instances": 1, "max_batch_size": 16, "queue_delay_us": 0, "parameters": {}}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        json.dumps({NAME: 5}),
        json.dumps({NAME: {"instances": 1}}),
        *(
            json.dumps({NAME: {**USABLE, **wrong}})
            for wrong in (
                {"instances": 0},
                {"max_batch_size": 8},  # the ensemble takes sixteen
                {"queue_delay_us": -1},
                {"parameters": {"inference_precision": 1}},
                {"parameters": {"threads": 0}},
            )
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tuning.json"
    file.write_text(json.dumps({NAME: USABLE}))
    assert tuning.apply(CONFIG, NAME, file) == CONFIG
    file.write_text(content)
    with pytest.raises(BuildError, match=r"tuning\.json.*make tune"):
        tuning.apply(CONFIG, NAME, file)
