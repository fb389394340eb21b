"""The one error that ends `make engine`."""


class BuildError(Exception):
    """The engine was not built or not installed; the message says why and what to do."""
