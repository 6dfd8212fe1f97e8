"""Fallow: trains and serves Mixture-of-Experts models on the idle nodes of supercomputers.

`fallow.Client` talks to a scheduler; `fallow.LocalCluster` starts a whole Fallow on this machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fallow.client import Client
    from fallow.errors import FallowError, InvalidSpec, RefusedError, Unreachable
    from fallow.local_cluster import LocalCluster
    from fallow.session import ElasticSession

__all__ = [
    "Client",
    "ElasticSession",
    "FallowError",
    "InvalidSpec",
    "LocalCluster",
    "RefusedError",
    "Unreachable",
]

_HOMES = {
    "Client": "fallow.client",
    "ElasticSession": "fallow.session",
    "LocalCluster": "fallow.local_cluster",
    "FallowError": "fallow.errors",
    "InvalidSpec": "fallow.errors",
    "RefusedError": "fallow.errors",
    "Unreachable": "fallow.errors",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for, so that `fallow --help` loads no gRPC."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fallow' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
