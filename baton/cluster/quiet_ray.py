"""Ray, imported after what it reads from the environment as it is imported. Others take `ray` from here.

What is set stays what the user set, where he did. It is inherited by the processes of a private Ray; a
Ray cluster that is joined has been told its own.
"""

import os

_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else a node on the loopback takes another address
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # the only way to keep remarks on dead workers off our stdout
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
import ray.util.scheduling_strategies  # noqa: E402

__all__ = ["ray"]
