"""What a worker reports of itself, for tests of who listens."""

from __future__ import annotations

from baton.state.base import Report
from baton.types import Fingerprint, PoolId, PoolLoad, Role, WorkerInfo

FINGERPRINT = Fingerprint("same", 64, 1, "fp16", 2, 2, 64)


def report(worker_id: str = "d0", incarnation: int = 1, num_running: int = 0) -> Report:
    info = WorkerInfo(
        worker_id=worker_id,
        incarnation=incarnation,
        role=Role.DECODE,
        address="127.0.0.1:9",
        model="m",
        fingerprint=FINGERPRINT,
        max_model_len=512,
        vocab_size=100,
        num_dp_ranks=1,
        num_total_blocks=8,
        package_version="0",
        transports=("shm",),
        host_id="h",
        pid=1,
    )
    load = PoolLoad(PoolId(worker_id), incarnation, num_running, 0, 0, 8, 8, 0, 0, 0)
    return Report(info, (load,))
