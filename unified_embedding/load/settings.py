"""The load test's own options; every one is also an environment variable."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from locust import events
from locust.argument_parser import LocustArgumentParser

from unified_embedding.checkout import IS_CHECKOUT, ROOT
from unified_embedding.client import OUTPUTS
from unified_embedding.errors import PicturesError, SettingsError
from unified_embedding.measure import pictures
from unified_embedding.measure.arrivals import RateProfile

DEFAULT_IMAGES: Final = str(ROOT / "demo" / "shots") if IS_CHECKOUT else pictures.MIX
# Name, default, environment variable, help.
_OPTIONS: Final[tuple[tuple[str, Any, str, str], ...]] = (
    (
        "--outputs",
        ",".join(OUTPUTS),
        "LOADTEST_OUTPUTS",
        "what to ask for: embedding,code or one of them",
    ),
    (
        "--images",
        DEFAULT_IMAGES,
        "LOADTEST_IMAGES",
        f"folder of pictures to send ({', '.join(pictures.SUFFIXES)}), or "
        f"'{pictures.MIX}': generated ones of many sizes",
    ),
    ("--images-per-request", 1, "LOADTEST_IMAGES_PER_REQUEST", "pictures in one request"),
    (
        "--think-time",
        0.0,
        "LOADTEST_THINK_TIME",
        "ClosedLoop: seconds a user waits after each answer",
    ),
    (
        "--rate",
        "50",
        "LOADTEST_RATE",
        "OpenLoop: requests per second of each user; steps '50@10,100@10', ramps '10..300@60'",
    ),
    (
        "--max-inflight",
        1000,
        "LOADTEST_MAX_INFLIGHT",
        "OpenLoop: requests of one user on their way at once; those due beyond it are dropped, "
        "counted, and fail the run",
    ),
    (
        "--request-timeout",
        10.0,
        "LOADTEST_REQUEST_TIMEOUT",
        "seconds until a request counts as failed",
    ),
    (
        "--warm-up",
        0.0,
        "LOADTEST_WARM_UP",
        "seconds after all users have started that no figure includes; 0 counts from the start",
    ),
    ("--seed", 0, "LOADTEST_SEED", "which pictures are drawn, and when requests are due"),
    (
        "--report",
        "",
        "LOADTEST_REPORT",
        "folder for report.html, report.json and timeline.csv, written when the test stops",
    ),
    (
        "--slo-p99-ms",
        0.0,
        "SLO_P99_MS",
        "exit with 1 unless 99 %% of the offered requests were answered within this; 0: no limit",
    ),
)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser) -> None:
    """Add our options to Locust's command line and web page, which listens on loopback."""
    parser.set_defaults(web_host="127.0.0.1")  # Locust's own default is every interface.
    group = parser.add_argument_group("Unified embedder")
    for name, default, variable, help_text in _OPTIONS:
        group.add_argument(
            name, default=default, type=type(default), env_var=variable, help=help_text
        )


@dataclass(frozen=True)
class Settings:
    """The options, checked.

    Attributes:
        outputs: outputs to ask for.
        pictures: encoded pictures to draw from.
        images_per_request: pictures in one request.
        think_time: seconds a closed-loop user waits after each answer.
        rate: requests per second of each open-loop user.
        max_inflight: requests of one open-loop user on their way at once.
        timeout: seconds until a request counts as failed.
        warm_up: seconds left out of all figures.
        seed: seed of the draws.
        report: folder of the report, or None.
        slo_p99_ms: limit for 99 % of the requests, or None.
        given: the options' values as they were given.
    """

    outputs: tuple[str, ...]
    pictures: tuple[bytes, ...]
    images_per_request: int
    think_time: float
    rate: RateProfile
    max_inflight: int
    timeout: float
    warm_up: float
    seed: int
    report: Path | None
    slo_p99_ms: float | None
    given: dict[str, Any]

    @classmethod
    def of(cls, options: Namespace | None) -> "Settings":
        """Check Locust's parsed options. Raises SettingsError."""
        assert options is not None
        asked = {name.strip() for name in options.outputs.split(",")}
        if not asked <= set(OUTPUTS):
            raise SettingsError(f"--outputs {options.outputs} is not a selection of {OUTPUTS}")
        for name in ("images_per_request", "max_inflight"):
            if getattr(options, name) < 1:
                raise SettingsError(f"--{_dashed(name)} {getattr(options, name)} is below 1")
        for name in ("think_time", "warm_up", "slo_p99_ms"):
            if not getattr(options, name) >= 0:
                raise SettingsError(f"--{_dashed(name)} {getattr(options, name)} is below 0")
        if not options.request_timeout > 0:
            raise SettingsError(f"--request-timeout {options.request_timeout} is not above 0")
        try:
            rate = RateProfile.parse(options.rate)
            found = pictures.load(options.images, options.seed)
        except PicturesError as error:
            raise SettingsError(f"{error}; give --images FOLDER or set LOADTEST_IMAGES") from None
        except ValueError as error:
            raise SettingsError(f"--rate: {error}") from None
        names = [_underscored(option[0]) for option in _OPTIONS]
        return cls(
            outputs=tuple(name for name in OUTPUTS if name in asked),
            pictures=found,
            images_per_request=options.images_per_request,
            think_time=options.think_time,
            rate=rate,
            max_inflight=options.max_inflight,
            timeout=options.request_timeout,
            warm_up=options.warm_up,
            seed=options.seed,
            report=Path(options.report) if options.report else None,
            slo_p99_ms=options.slo_p99_ms or None,
            given={name: getattr(options, name) for name in names},
        )


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _underscored(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")
