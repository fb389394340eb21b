"""docs/settings.md lists every setting that the code reads, with the default that the code has."""

from pathlib import Path

import pytest

pytest.importorskip("rich", reason="the extra `client` is not installed")

from unified_embedding.cli import settings_page


def test_the_page_is_what_the_code_says() -> None:
    stale = "docs/settings.md is older than the code: run `python build/settings_page.py`"
    assert settings_page.PAGE.read_text() == settings_page.page(), stale


def test_every_variable_that_is_read_has_a_meaning_and_the_reverse() -> None:
    told = {name for meanings in settings_page.ENVIRONMENT.values() for name in meanings}
    assert set(settings_page.variables()) == told
    assert set(settings_page.make_variables()) == set(settings_page.MAKE)
    assert set(settings_page.shell_variables()) == set(settings_page.SHELL)
    assert set(settings_page.LIMITS) == set(settings_page.SETTINGS.values())


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('os.environ["A"]', {"A": ""}),
        ('os.environ["A"] = "1"', {"A": ""}),
        ('os.environ.get("A", "2")', {"A": "2"}),
        ('os.environ.setdefault("A", "2")', {"A": "2"}),
        ('os.getenv("A")', {"A": ""}),
        ('"A" in os.environ', {"A": ""}),
        ('NAME = "A"\nos.environ.get(NAME)', {"A": ""}),
        ("from unified_embedding.datasets.store import HOME_VARIABLE as N\nos.getenv(N)", None),
        ("os.environ.get(name())", None),
    ],
)
def test_every_way_to_read_a_variable_is_seen(
    source: str, found: dict[str, str] | None, tmp_path: Path
) -> None:
    file = tmp_path / "code.py"
    file.write_text(source)
    if found is None:
        with pytest.raises(ValueError, match="computed name"):
            dict(settings_page.reads(str(file)))
    else:
        assert dict(settings_page.reads(str(file))) == found


def test_options_tell_variable_and_default(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text(
        "from unified_embedding.cli.options import Url\n"
        "from unified_embedding.client import DEFAULT_URL\n"
        "def main(\n"
        '    much: Annotated[float, typer.Option(envvar="MUCH", help="x")] = 2.5,\n'
        "    url: Url = DEFAULT_URL,\n"
        '    where: Annotated[Path, typer.Option(envvar="WHERE")] = ROOT / "out" / "index",\n'
        "    other: int = 3,\n"
        "): ...\n"
    )
    assert dict(settings_page.options(str(file))) == {
        "MUCH": "2.5",
        "UNIFIED_EMBEDDING_URL": "127.0.0.1:8001",
        "WHERE": "out/index",
    }


def test_an_option_that_programs_share_is_read_by_all_of_them() -> None:
    readers = {path for path, _ in settings_page.variables()["UNIFIED_EMBEDDING_URL"]}
    assert "unified_embedding/cli/status.py" in readers
    assert "unified_embedding/cli/options.py" not in readers
