"""The name that `python -m unified_embedding.export` had."""

import runpy

runpy.run_module("unified_embedding.export", run_name="__main__", alter_sys=True)
