"""The clusters that benchmarks compare, on two cores of this machine: what runs where.

    disaggregated   a prefill worker on the first core, a decode worker on the second
    aggregated      one decode worker alone, on one core or on both

Every worker has as many threads as cores. Routers and clients are not bound to any core.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from baton.cluster.local import LocalCluster
from baton.cluster.process import Flags
from baton.errors import ConfigError

KV_CACHE_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Cores:
    prefill: int
    decode: int


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The flags of its decode worker, and of its prefill worker where it has one."""

    decode: Flags
    prefill: Flags | None = None


def two_cores() -> Cores:
    """Two of those that this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise ConfigError("prefill and decode need a core each, and there is one", field="cores")
    return Cores(usable[0], usable[1])


def disaggregated(cores: Cores) -> Arrangement:
    return Arrangement(
        decode={"worker_id": "decode-0", **_bound_to(cores.decode)},
        prefill={"worker_id": "prefill-0", **_bound_to(cores.prefill)},
    )


def aggregated(*cores: int, max_chunk_tokens: int | None = None) -> Arrangement:
    """`max_chunk_tokens` None: the default."""
    return Arrangement(
        {"worker_id": "decode-0", "max_chunk_tokens": max_chunk_tokens, **_bound_to(*cores)}
    )


@contextmanager
def started(model: str, arrangement: Arrangement) -> Iterator[LocalCluster]:
    """The workers behind a router of their own. `model`: a shape's name or a folder; its weights are
    dummies either way."""
    common = {"load_format": "dummy", "kv_cache_bytes": KV_CACHE_BYTES, "log_level": "warning"}
    with LocalCluster(model, worker_flags={**common, **arrangement.decode}) as cluster:
        if arrangement.prefill is not None:
            cluster.add_worker(role="prefill", **arrangement.prefill)
            cluster.wait_ready()
        yield cluster


def _bound_to(*cores: int) -> Flags:
    return {"cores": ",".join(map(str, cores)), "num_threads": len(cores)}
