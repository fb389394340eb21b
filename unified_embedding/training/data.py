"""The name that `python -m unified_embedding.datasets` had."""

import runpy

runpy.run_module("unified_embedding.datasets", run_name="__main__", alter_sys=True)
