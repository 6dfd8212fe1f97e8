"""Imports, when it is imported, what takes a worker longest, before the worker knows which job it is for.

Ray does that in every worker process of a cluster (`CLUSTER_SETTINGS` in `runtime.site.head`). None of these modules is
ever freed. So garbage is not looked for meanwhile, which takes a tenth of the time, nor among them later.
"""

from __future__ import annotations

import gc
import importlib

MODULES = ("torch", "runtime.serving.workers", "runtime.training.worker")

gc.disable()
for _module in MODULES:
    importlib.import_module(_module)
gc.freeze()
gc.enable()
