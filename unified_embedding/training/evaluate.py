"""The name that `python -m unified_embedding.evaluation` had."""

import runpy

runpy.run_module("unified_embedding.evaluation", run_name="__main__", alter_sys=True)
