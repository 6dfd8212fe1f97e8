"""This process as the driver of the site's Ray cluster. Nothing else may import Ray before `connect` has run."""

from __future__ import annotations

import os
import sys

from runtime.site.head import Head, auth_settings

NAMESPACE = "fallow"


def connect(head: Head) -> None:
    """Join the cluster through the head's own raylet, never through a lent one of the same machine. Blocking.

    Ray reads token and mode once, when it is imported. Raises ConnectionError.
    """
    _prepare_environment(head)
    import ray

    if ray.is_initialized():
        return
    ray.init(
        address=f"127.0.0.1:{head.port}",
        namespace=NAMESPACE,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=head.temp_dir,
    )


def disconnect() -> None:
    """Leave the cluster if this process has joined it; detached actors go on. Blocking."""
    ray = sys.modules.get("ray")
    if ray is not None:
        ray.shutdown()


def _prepare_environment(head: Head) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    os.environ.update(auth_settings(head.token), RAY_USAGE_STATS_ENABLED="0", RAY_TMPDIR=head.temp_dir)
