"""How Triton runs an engine on one machine: `make tune` measures it, `make engine` reads it."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from unified_embedding.checkout import ROOT
from unified_embedding.engine.build_error import BuildError
from unified_embedding.engine.targets import Target
from unified_embedding.engine.triton_config import EmbedderConfig
from unified_embedding.measure.files import write_json
from unified_embedding.measure.processor import cpu_name
from unified_embedding.spec import MAX_BATCH_SIZE, EmbedderSpec

FILE: Final = ROOT / "build" / "tuning.json"
KNOBS: Final = ("instances", "max_batch_size", "queue_delay_us")
# Of the string parameters that an engine's model.py reads, those that change no answer.
PARAMETERS: Final = ("threads", "streams", "slice")


def key(spec: EmbedderSpec, target: Target) -> str:
    """What a tuning is good for: one network in one precision on one kind of machine."""
    cores = len(os.sched_getaffinity(0))
    return f"{spec.trunk}, {target.name} {target.precision}, {cores} cores of {cpu_name()}"


def apply(config: EmbedderConfig, name: str, file: Path) -> EmbedderConfig:
    """`config` with the values that were measured for `name`; unchanged when none were.

    Raises:
        BuildError: the file cannot be read, or holds values that no engine can be run with.
    """
    entry = _entries(file).get(name)
    if entry is None:
        return config
    try:
        parameters = {known: str(int(value)) for known, value in entry["parameters"].items()}
        values = {knob: int(entry[knob]) for knob in KNOBS}
        usable = (
            set(parameters) <= set(PARAMETERS)
            and all(int(value) >= 1 for value in parameters.values())
            and values["instances"] >= 1
            and values["max_batch_size"] >= MAX_BATCH_SIZE
            and values["queue_delay_us"] >= 0
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(file, name) from error
    if not usable:
        raise _damaged(file, name)
    return replace(
        config,
        instances=values["instances"],
        max_batch_size=values["max_batch_size"],
        queue_delay_us=values["queue_delay_us"],
        parameters={**config.parameters, **parameters},
    )


def save(config: EmbedderConfig, name: str, measured: Mapping[str, Any], file: Path) -> None:
    """Keep the values of `config` for `name`, with what was measured. Raises BuildError."""
    entry: dict[str, Any] = {knob: getattr(config, knob) for knob in KNOBS}
    entry["parameters"] = {
        known: int(config.parameters[known]) for known in PARAMETERS if known in config.parameters
    }
    write_json(file, {**_entries(file), name: {**entry, "measured": dict(measured)}})


def _entries(file: Path) -> dict[str, Any]:
    try:
        entries = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BuildError(f"{file} cannot be read ({error}); remove it, or run make tune") from error
    if not isinstance(entries, dict):
        raise BuildError(f"{file} holds no tunings; remove it, or run make tune")
    return entries


def _damaged(file: Path, name: str) -> BuildError:
    return BuildError(f"{file}: the entry '{name}' is damaged; remove it, or run make tune")
