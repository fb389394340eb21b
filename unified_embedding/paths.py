"""How callers may name a file or a folder."""

import os

StrPath = str | os.PathLike[str]
"""A path as text or as an object; every public argument that is a path takes both."""
