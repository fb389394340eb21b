"""The load test's own options; every one is also an environment variable."""

from argparse import Namespace
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from locust import events
from locust.argument_parser import LocustArgumentParser

from unified_embedding.client import OUTPUTS

DEFAULT_IMAGES: Final = Path(__file__).resolve().parent.parent / "demo" / "shots"
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser) -> None:
    """Add our options to Locust's command line and web page."""
    group = parser.add_argument_group("Unified embedder")
    group.add_argument(
        "--outputs",
        default=",".join(OUTPUTS),
        env_var="LOADTEST_OUTPUTS",
        help="what to ask for: embedding,code or one of them",
    )
    group.add_argument(
        "--images",
        default=str(DEFAULT_IMAGES),
        env_var="LOADTEST_IMAGES",
        help=f"folder of pictures to send ({', '.join(SUFFIXES)})",
    )
    group.add_argument(
        "--images-per-request",
        type=int,
        default=1,
        env_var="LOADTEST_IMAGES_PER_REQUEST",
        help="pictures in one request",
    )
    group.add_argument(
        "--think-time",
        type=float,
        default=0.0,
        env_var="LOADTEST_THINK_TIME",
        help="seconds a user waits after each answer",
    )
    group.add_argument(
        "--request-timeout",
        type=float,
        default=10.0,
        env_var="LOADTEST_REQUEST_TIMEOUT",
        help="seconds until a request counts as failed",
    )
    group.add_argument(
        "--seed", type=int, default=0, env_var="LOADTEST_SEED", help="which pictures are drawn"
    )


class SettingsError(Exception):
    """An option's value cannot be used; the message says why."""


@dataclass(frozen=True)
class Settings:
    """The options, checked.

    Attributes:
        outputs: outputs to ask for.
        pictures: encoded pictures to draw from.
        images_per_request: pictures in one request.
        think_time: seconds a user waits after each answer.
        timeout: seconds until a request counts as failed.
        seed: seed of the draw.
    """

    outputs: tuple[str, ...]
    pictures: tuple[bytes, ...]
    images_per_request: int
    think_time: float
    timeout: float
    seed: int

    @classmethod
    def of(cls, options: Namespace | None) -> "Settings":
        """Check Locust's parsed options. Raises SettingsError."""
        assert options is not None
        asked = {name.strip() for name in options.outputs.split(",")}
        if not asked <= set(OUTPUTS):
            raise SettingsError(f"--outputs {options.outputs} is not a selection of {OUTPUTS}")
        if options.images_per_request < 1:
            raise SettingsError(f"--images-per-request {options.images_per_request} is below 1")
        if options.think_time < 0 or options.request_timeout <= 0:
            raise SettingsError("--think-time must be >= 0 and --request-timeout > 0 seconds")
        return cls(
            outputs=tuple(name for name in OUTPUTS if name in asked),
            pictures=load_pictures(options.images),
            images_per_request=options.images_per_request,
            think_time=options.think_time,
            timeout=options.request_timeout,
            seed=options.seed,
        )


@cache
def load_pictures(folder: str) -> tuple[bytes, ...]:
    """The pictures of a folder, sorted by name. Raises SettingsError."""
    files = sorted(file for file in Path(folder).glob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise SettingsError(
            f"{folder} holds no picture ({', '.join(SUFFIXES)}); give --images FOLDER or set "
            "LOADTEST_IMAGES"
        )
    return tuple(file.read_bytes() for file in files)
