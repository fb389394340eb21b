"""A Triton model's configuration (config.pbtxt), read and written as the message that it is.

For what builds, lays out and measures repositories; no model.py needs it, nor protobuf.
"""

from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from unified_embedding.whole_files import write_whole

FILE: Final = "config.pbtxt"


def read(model: Path) -> Any:
    """The ModelConfig of a model's folder.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is no model configuration; file and line are named.
    """
    try:
        return text_format.Parse((model / FILE).read_text(), ModelConfig())
    except text_format.ParseError as error:
        raise ValueError(f"{model / FILE} is no model configuration: {error}") from error


def text(config: Any) -> str:
    """A ModelConfig as protobuf's text."""
    return str(text_format.MessageToString(config))


def write(model: Path, config: Any, comment: str = "") -> None:
    """Write a ModelConfig into a model's folder, whole or not at all.

    Above it stands `comment`, by default what the file began with so far.
    """
    file = model / FILE
    if not comment and file.exists():
        lines = file.read_text().splitlines(keepends=True)
        comment = "".join(takewhile(lambda line: line.startswith("#"), lines))
    write_whole(file, comment + text(config))
