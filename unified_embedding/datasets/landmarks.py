"""The retrieval task of the Google Landmarks Dataset v2, in the layout in which it is published.

Weyand et al., CVPR 2020. `retrieval_solution_v2.1.csv` (id, images, Usage) names each query's
right answers among the index pictures: a query has a list of its own, not a label. Usage is
Public (the validation queries), Private (the test queries) or Ignored (no answer is known).
`index.csv` lists the index. Pictures lie in `test/` and `index/`, in folders named by the first
three characters of their id.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unified_embedding.errors import DataError, shown

SOLUTION: Final = "retrieval_solution_v2.1.csv"
_HEADER: Final = "id,images,Usage"
_IGNORED: Final = "Ignored"
USAGES: Final = ("Private", "Public")


@dataclass(frozen=True)
class Landmarks:
    """Queries and index.

    Attributes:
        queries: paths below the root.
        usage: "Private" or "Public", for each query.
        answers: the places in `index` of each query's right answers.
        index: paths below the root.
    """

    queries: list[str]
    usage: list[str]
    answers: list[list[int]]
    index: list[str]


def read_landmarks(root: Path) -> Landmarks:
    """Read the two lists.

    Raises:
        DataError: a list is missing or damaged, or an answer is not in the index.
    """
    listed = _list(root, "index.csv", "index")
    header, *lines = listed.read_text().splitlines()
    if header.split(",")[0] != "id":
        raise DataError(f"{listed}, line 1: expected the header id; download it again")
    index = [line.split(",")[0] for line in lines if line]
    place = {name: number for number, name in enumerate(index)}
    solution = _list(root, SOLUTION, "test")
    found = Landmarks([], [], [], [_path("index", name, listed) for name in index])
    header, *lines = solution.read_text().splitlines()
    if header != _HEADER:
        raise DataError(f"{solution}, line 1: expected the header {_HEADER}; download it again")
    for number, line in enumerate(lines, 2):
        where = f"{solution}, line {number}"
        cells = line.split(",")
        if len(cells) != len(_HEADER.split(",")):
            raise DataError(f"{where}: {len(cells)} cells, expected {_HEADER}; download it again")
        query, images, usage = cells
        if usage == _IGNORED:
            continue
        if usage not in USAGES:
            raise DataError(f"{where}: Usage {shown(usage)} is none of {USAGES} and {_IGNORED}")
        unknown = [name for name in images.split() if name not in place]
        if unknown or not images.split():
            raise DataError(
                f"{where}: {shown(unknown[0]) if unknown else 'no picture'} is not in {listed}; "
                "the two lists belong to different versions"
            )
        found.queries.append(_path("test", query, solution))
        found.usage.append(usage)
        found.answers.append([place[name] for name in images.split()])
    return found


def _list(root: Path, name: str, folder: str) -> Path:
    """At the root, or in the folder of its pictures, where the data set's own script puts it."""
    for path in (root / name, root / folder / name):
        if path.exists():
            return path
    raise DataError(
        f"{root} holds no {name}, nor does its folder {folder}; download it from "
        "https://github.com/cvdfoundation/google-landmark"
    )


def _path(folder: str, name: str, source: Path) -> str:
    if len(name) < 3 or not name.isalnum():
        raise DataError(f"{source} names the picture {shown(name)}, which is not an id")
    return f"{folder}/{name[0]}/{name[1]}/{name[2]}/{name}.jpg"
