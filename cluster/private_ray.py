"""A Ray of our own on this machine, and the way into one that exists.

The private one is heard on the loopback only, has no dashboard, writes to a given folder only, and ends
with this process, however that ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from baton.errors import ConfigError, Unavailable
from cluster.placement import Node
from cluster.quiet_ray import ray

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 80 << 20  # about the least that Ray allows; nothing of ours goes through it

# Ray's own default is to ask for a token, since other users of this machine reach the loopback, too. It is
# one for all private Rays of this process, as Ray reads it once; given here, none is written to $HOME.
_TOKEN = secrets.token_hex(32)

_ENVIRONMENT = {
    "RAY_AUTH_TOKEN": _TOKEN,
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 would let anything else on the machine delay a step
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",  # CUDA IPC needs peers' GPUs visible
}


def start(folder: Path, environment: Mapping[str, str]) -> None:
    """`environment`: what Ray's processes, and so the actors, have beside this process's."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _set({**_ENVIRONMENT, **environment}), _signal_handlers_kept():
        try:
            ray.init(
                "local",
                num_cpus=len(os.sched_getaffinity(0)),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=str(folder),
                _node_ip_address=_LOOPBACK,
            )
        except Exception as error:  # Ray has no type of its own for it
            raise Unavailable(f"Ray did not start: {error}") from error


def join(address: str) -> None:
    """Connects to the Ray cluster at `address` (host:port, or "auto")."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with _signal_handlers_kept():
            ray.init(address, log_to_driver=False, configure_logging=False)
    except Exception as error:
        raise ConfigError(f"no Ray cluster can be joined: {error}", field="address") from error


def stop() -> None:
    """Ends a private Ray with all that runs in it; leaves one that was joined."""
    ray.shutdown()


def nodes() -> list[Node]:
    """Those alive, this one first."""
    own = own_node_id()
    alive = [
        Node(
            entry["NodeID"],
            entry["NodeManagerAddress"],
            int(entry["Resources"].get("CPU", 0)),
            int(entry["Resources"].get("GPU", 0)),
        )
        for entry in _entries()
        if entry["Alive"]
    ]
    usable = [node for node in alive if node.num_cores]
    return sorted(usable, key=lambda node: (node.node_id != own, node.node_id))


def _entries() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return entries


def own_node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def own_address() -> str:
    """This node's, as other nodes reach it."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray sets one for SIGTERM that ends the process as it stands."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets what the user has not set, for the time of starting."""
    ours = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
