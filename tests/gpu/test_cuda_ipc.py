"""CUDA IPC: what only a GPU has."""

from __future__ import annotations

import pytest
import torch

from kv_transfer.base import TransferId, Write
from kv_transfer.cuda_ipc import CudaIpcReceiver, CudaIpcSender
from kv_transfer.pool import Pool
from tests.checksum_definition import definition
from tests.gpu.on_cuda import ON_CUDA
from tests.transfer.test_peer_death import Peer
from tests.transfer.worlds import BIG, SMALL, random_pool

pytestmark = ON_CUDA

ONE = TransferId("one", 1)
_CYCLES = 200_000_000  # of a kernel that keeps the stream busy: some 0.1 s


def test_a_write_follows_what_the_engine_had_queued_and_holds_nothing_up(kind: str) -> None:
    source, target = random_pool(SMALL), random_pool(SMALL, seed=2)
    receiver = CudaIpcReceiver(target)
    link = CudaIpcSender(source).connect(receiver.offer())
    receiver.open(ONE, [3])
    link.open(ONE, [3])
    link.write(ONE, Write(0, [0], [3])).result(timeout=30)  # whatever is loaded once
    torch.cuda._sleep(_CYCLES)  # the engine's kernels of this layer ...
    source.piece(1, 5).fill_(9)  # ... the last of which writes its KV
    written = link.write(ONE, Write(1, [5], [3]))
    queued = torch.cuda.Event()
    queued.record()
    assert not queued.query()  # the call came back while they ran
    assert not written.done()
    sums = written.result(timeout=30).checksums
    assert (target.piece(1, 3) == 9).all()
    arrived = target.piece(1, 3).cpu().numpy().tobytes()
    assert sums == [definition(arrived, SMALL.piece_words)]
    link.close()
    receiver.close()


def test_the_sum_on_a_gpu_is_that_on_a_cpu(kind: str) -> None:
    pool = random_pool(BIG)
    on_cpu = Pool(BIG, pool.memory.cpu())
    assert [pool.checksum(block) for block in range(4)] == [
        on_cpu.checksum(block) for block in range(4)
    ]


def test_a_gpu_that_this_process_does_not_see_is_told(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = CudaIpcReceiver(random_pool(SMALL))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    blind = Peer("prefill", kind)
    blind.say(receiver.offer().hex())
    assert blind.hear() == []  # it ended
    assert blind.process.wait(30) != 0
    blind.end()
    receiver.close()
