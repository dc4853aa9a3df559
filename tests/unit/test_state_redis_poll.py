"""What a router does with what it read of a Redis; no Redis is asked."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from baton.state import records
from baton.state.redis import RedisState
from tests.reports import report

NUM_WORKERS = 200


async def test_only_what_changed_is_unpacked_and_others_have_their_turn_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_unpacked = 0
    unpack = records.unpack_worker

    def counted(data: bytes) -> object:
        nonlocal num_unpacked
        num_unpacked += 1
        return unpack(data)

    monkeypatch.setattr(records, "unpack_worker", counted)
    state = RedisState("redis://127.0.0.1:1/0")
    read = {f"d{i}": records.pack_worker(report(f"d{i}"), 1) for i in range(NUM_WORKERS)}
    taking = asyncio.create_task(state._take(read))
    unpacked_at_turns = []
    while not taking.done():
        unpacked_at_turns.append(num_unpacked)
        await asyncio.sleep(0)
    await taking
    assert len(state.snapshot()) == num_unpacked == NUM_WORKERS
    steps = [b - a for a, b in pairwise(unpacked_at_turns)]
    assert max(steps) <= 16
    await state._take(read | {"d7": records.pack_worker(report("d7", num_running=1), 2)})
    assert num_unpacked == NUM_WORKERS + 1
    assert state.snapshot()[-1].info == report("d99").info
    await state._store.close()
