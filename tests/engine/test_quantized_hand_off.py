"""A hand-off of quantized KV: what D decodes is what it would have computed itself, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baton.scheduling.step_plan import Slice
from baton.worker.engine import LoadedEngine
from kv_transfer.base import TransferId
from kv_transfer.pool import Pool
from tests.engine.harness import Driver, prompt_tokens
from tests.transfer.worlds import Decode, make_decode, make_sender, send

PROMPT, FORCED = (
    prompt_tokens(75),
    prompt_tokens(30, seed=9),
)  # 16 tokens per block: the fifth is partial
CUTS = (20, 50)
TRANSFER = TransferId("handed over", 1)


def decode_logits(driver: Driver, table: Sequence[int]) -> Tensor:
    """Of a continuation, fed token by token; the partial block fills up and others follow."""
    rows = [
        driver.logits(Slice([token], len(PROMPT) + step, table))[0]
        for step, token in enumerate(FORCED)
    ]
    return torch.cat(rows)


def hand_over(pool: Pool, decode: Decode, kind: str, source: list[int], target: list[int]) -> None:
    with ExitStack() as stack:
        stack.callback(decode.receiver.close)
        decode.receiver.open(TRANSFER, target)
        link = make_sender(kind, pool).connect(decode.receiver.offer())
        stack.callback(link.close)
        link.open(TRANSFER, target)
        sums = send(link, TRANSFER, pool.layout.num_layers, source, target)
        assert sums == [decode.pool.checksum(block) for block in target]


@pytest.mark.parametrize("kind", ["loopback", "shm"])
@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_disaggregated_equals_aggregated(
    checkpoint: Callable[..., Path], backend: None, kv_dtype: str, kind: str
) -> None:
    folder = checkpoint("llama")
    prefill, decode, aggregated = (
        Driver(folder, dtype="fp32", kv_dtype=kv_dtype) for _ in range(3)
    )
    table = aggregated.table(len(PROMPT) + len(FORCED))
    aggregated.prefill_logits(PROMPT, table, CUTS)
    expected = decode_logits(aggregated, table)

    source = prefill.table(len(PROMPT))
    prefill.prefill_logits(PROMPT, source, CUTS)
    pool = LoadedEngine(prefill.runner, shared=None).pool()
    target = decode.table(7 * 16)[::-1]
    receiving = make_decode(kind, pool.layout)
    hand_over(pool, receiving, kind, source, target[: len(source)])
    decode.runner.kv_cache.buffer.copy_(receiving.pool.memory)
    assert torch.equal(decode_logits(decode, target), expected)


@pytest.mark.parametrize("kv_dtype", ["fp32", "int8", "fp8"])
def test_a_worker_offers_its_cache_as_it_lies(
    checkpoint: Callable[..., Path], kv_dtype: str
) -> None:
    """Engine and transfer each work out where a block and its heads lie, knowing nothing of each other."""
    driver = Driver(checkpoint("llama"), dtype="fp32", kv_dtype=kv_dtype)
    pool, layout = LoadedEngine(driver.runner, shared=None).pool(), driver.runner.layout
    assert pool.layout.head_bytes == layout.head_bytes
    assert pool.layout.block_bytes == layout.block_bytes
    layer = driver.runner.kv_cache.layers[1]
    layer.values.view(torch.uint8)[5, 1, 1] = 7
    begin = pool.layout.piece_bytes - layer.values[5, 1, 1].nbytes  # v of the last head comes last
    assert (pool.piece(1, 5)[begin:] == 7).all()
    assert not pool.piece(1, 5)[:begin].any()
