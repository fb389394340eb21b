import csv
import shutil
import signal
from collections.abc import Generator
from pathlib import Path

import ci_mode
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# A shell that starts the tests in the background has SIGINT and SIGQUIT ignored, nohup SIGHUP,
# and every program that the tests start would inherit that.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# No test is timed: a loaded machine gives the same result. The examples are the same in every
# run, so that what passes here passes elsewhere; looking for new ones is `make fuzz`.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    ci_mode.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    ci_mode.start(config)


def pytest_sessionfinish(session: pytest.Session) -> None:
    ci_mode.finish(session)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    ci_mode.judge(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    ci_mode.judge(collector.config, report)
    return report


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def few_products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen products of the demo gallery: enough to see that gates run."""
    folder = tmp_path_factory.mktemp("few_products")
    with (ROOT / "demo/gallery.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    products = sorted({row["product"] for row in rows})[::10]
    kept = [row for row in rows if row["product"] in products]
    with (folder / "gallery.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(kept)
    for row in kept:
        (folder / row["image"]).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / "demo" / row["image"], folder / row["image"])
    return folder
