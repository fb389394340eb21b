"""Pictures in tar files, by the rules of WebDataset.

Members with equal keys belong together: the key is the folder and the base name up to its first
dot (github.com/webdataset/webdataset, `base_plus_ext`). KEY.json and KEY.ANY.json hold an
object, KEY.txt and KEY.cls text; all of them are metadata of the key's pictures.
"""

import json
import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from unified_embedding.corpus.places import open_regular, reason
from unified_embedding.corpus.sources.item import TAR, Item, PassedOver
from unified_embedding.corpus.text import printable
from unified_embedding.errors import DamagedError, InputError, StoreError
from unified_embedding.image import SUFFIXES

COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
MAC: Final = "files that macOS puts beside others (._*, __MACOSX)"
NO_PICTURE: Final = "files whose names are not those of pictures"
_MAX_METADATA_BYTES: Final = 16_000_000


def is_of_a_mac(path: str) -> bool:
    """Whether a path is an AppleDouble file, or lies in the folder that holds those in archives."""
    parts = path.split("/")
    return parts[-1].startswith("._") or "__MACOSX" in parts or parts[-1] == ".DS_Store"


def key_and_suffix(member: str) -> tuple[str, str]:
    """A member's key and what follows the dot behind it: "a.b/c.left.jpg" is a.b/c, left.jpg."""
    folder, slash, base = member.rpartition("/")
    # A name that begins with a dot has its first letters before the next one.
    dot = base.find(".", 1)
    return (member, "") if dot < 0 else (f"{folder}{slash}{base[:dot]}", base[dot + 1 :])


def in_tar(name: str, place: str, passed: PassedOver) -> Iterator[Item]:
    """The pictures of a tar file, in its order.

    Raises:
        DamagedError: it is no tar file, or is compressed.
        InputError: the place cannot be used.
    """
    try:
        file, size = open_regular(place)
    except OSError as error:
        raise DamagedError(f"cannot be read ({reason(error)})") from error
    except StoreError as error:
        raise InputError(str(error)) from error
    with file:
        members, facts = _contents(name, file, size, passed)
    for member, data, problem in members:
        key = key_and_suffix(member)[0]
        shown = printable(member)
        yield Item(
            f"{name}::{shown}",
            TAR,
            place,
            data.offset_data,
            data.size,
            metadata=passed.facts(f"{name}::{shown}", facts.get(key, {})),
            member=shown,
            problem=problem,
        )
    keys = {key_and_suffix(member)[0] for member, _, _ in members}
    for key in facts.keys() - keys:
        passed.add("metadata without a picture", f"{name}::{key}")


def _contents(
    name: str, file: BinaryIO, size: int, passed: PassedOver
) -> tuple[list[tuple[str, tarfile.TarInfo, str]], dict[str, dict[str, Any]]]:
    """The pictures with what is wrong with them, and the metadata by key."""
    pictures: list[tuple[str, tarfile.TarInfo, str]] = []
    facts: dict[str, dict[str, Any]] = {}
    files: dict[str, tarfile.TarInfo] = {}
    for member in _members(name, file, size, passed):
        path = f"{name}::{member.name}"
        if member.isdir():
            continue
        if is_of_a_mac(member.name):
            passed.add(MAC, path)
            continue
        data = member
        if member.islnk() or member.issym():
            target = member.linkname
            if member.issym():
                target = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), target))
            found = files.get(target) or files.get(f"./{target}")
            if found is None:
                passed.add("links to what is not in the tar file before them", path)
                continue
            data = found
        elif not member.isfile():
            passed.add("members that are pipes or devices", path)
            continue
        files[member.name] = data
        suffix = key_and_suffix(member.name)[1]
        if member.name.lower().endswith(SUFFIXES):
            pictures.append((member.name, data, _problem(data, size)))
        elif suffix.rpartition(".")[2] in ("json", "txt", "cls"):
            said = _facts(path, suffix, file, data, size, passed)
            _merge(facts.setdefault(key_and_suffix(member.name)[0], {}), suffix, said)
        else:
            passed.add(NO_PICTURE, path)
    return pictures, facts


def _members(name: str, file: BinaryIO, size: int, passed: PassedOver) -> Iterator[tarfile.TarInfo]:
    """The members up to the end, or up to where the tar file is damaged, which is counted."""
    try:
        # Without "r:", a compressed file is unpacked on the way, and offsets mean nothing.
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
    except Exception as error:
        file.seek(0)
        start = file.read(6)
        packed = start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start == b"\xfd7zXZ\x00"
        why = "it is compressed: unpack it" if packed else reason(error)
        raise DamagedError(f"is not a readable tar file ({why})") from error
    last = -1
    while True:
        try:
            member = archive.next()
        # tarfile raises errors of many types for headers that make no sense.
        except Exception as error:
            passed.add("tar files damaged within: what follows is not read", f"{name} ({error})")
            return
        if member is None or member.offset <= last:
            break
        last = member.offset
        yield member
    # tarfile takes a damaged header for the end; the real one is zeros, or nothing.
    if archive.offset < size:
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0") or member is not None:
            passed.add("tar files damaged within: what follows is not read", name)


def _problem(member: tarfile.TarInfo, size: int) -> str:
    if member.issparse():
        return (
            "it is stored as a sparse file, which cannot be read by itself: pack without --sparse"
        )
    if member.size < 0 or member.offset_data + member.size > size:
        return "the tar file ends within this member"
    return ""


def _facts(
    path: str,
    suffix: str,
    file: BinaryIO,
    member: tarfile.TarInfo,
    size: int,
    passed: PassedOver,
) -> dict[str, Any]:
    """What a metadata member says; one that says nothing usable is counted."""
    if member.size > _MAX_METADATA_BYTES:
        passed.add(f"metadata of more than {_MAX_METADATA_BYTES:,} bytes: left out", path)
        return {}
    if _problem(member, size):
        passed.add("metadata that cannot be read from the tar file: left out", path)
        return {}
    place = file.tell()
    file.seek(member.offset_data)
    data = file.read(member.size)
    file.seek(place)
    if suffix.endswith("json"):
        return json_facts(path, data, passed)
    return {suffix: decoded(path, data, passed).strip()}


def decoded(path: str, data: bytes, passed: PassedOver) -> str:
    """Text as UTF-8, or as Latin-1, which is counted."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        passed.add("text that is not UTF-8: read as Latin-1", path)
        return data.decode("latin-1")


def json_facts(path: str, data: bytes, passed: PassedOver) -> dict[str, Any]:
    """The JSON object in `data`; anything else is counted and left out."""
    try:
        try:
            facts = json.loads(data)
        except UnicodeDecodeError:
            facts = json.loads(decoded(path, data, passed))
    except (ValueError, RecursionError):
        passed.add("metadata that is not JSON: left out", path)
        return {}
    if not isinstance(facts, dict):
        passed.add("metadata that is JSON but no object: left out", path)
        return {}
    return facts


def _merge(facts: dict[str, Any], suffix: str, said: dict[str, Any]) -> None:
    """Add what one member says; a name that is taken gets the member's suffix before it."""
    prefix = suffix.rpartition(".")[0] or suffix
    for key, value in said.items():
        facts[f"{prefix}.{key}" if key in facts else key] = value
