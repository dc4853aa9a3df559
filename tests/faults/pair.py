"""One prefill worker and one decode worker, whose prompts are computed on the decode worker where the prefill
worker loses them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count

from baton.types import PrefillChoice
from tests.cluster.watching import eventually
from tests.faults import campaign
from tests.faults.dealing import BLOCK_SIZE, Deal, Fault
from tests.faults.decode import MAX_TOKENS, Decode, Life
from tests.faults.hash_model import expected_output
from tests.faults.prefill import Place
from tests.faults.writers import Writer

TIMES = replace(campaign.TIMES, answer_timeout_s=1.0)
_WITHIN_S = 60.0


class Pair:
    def __init__(self, transport: str, kind: type[Decode] = Decode) -> None:
        self._numbers = count()
        self._transport = transport
        self.decode = kind(transport, TIMES, self._nobody)
        place = Place(transport, f"{transport}-0", 0, TIMES)
        self.writer = Writer(place, lambda struck: None, lambda: 0.0)

    async def serve(self) -> Life:
        """A prompt of its own, answered as it must be."""
        number = next(self._numbers)
        tokens = tuple((number * 97 + place) % 900 for place in range(12 * BLOCK_SIZE))
        deal = Deal(number, self._transport, Fault.NONE, 0, 0, 0.0, tokens, lend=False)
        life = Life(deal, asyncio.get_running_loop().create_future())
        await self.decode.start(life, self.writer.choice)
        async with asyncio.timeout(_WITHIN_S):
            finished = await life.finished
        assert finished.error is None
        assert life.token_ids == expected_output(tokens, MAX_TOKENS)
        return life

    async def hand_over(self) -> None:
        """A prompt that the prefill worker computes."""
        before = self.decode.num_handed_over
        assert not (await self.serve()).lost
        assert self.decode.num_handed_over == before + 1

    async def recovered(self) -> None:
        """Prompts are handed over again, as soon as both sides know that the old link is gone: one that is
        asked before may be lost with it."""
        async with asyncio.timeout(_WITHIN_S):
            while (await self.serve()).lost:
                pass

    async def settled(self) -> None:
        """Nobody holds a block any more, on either side."""
        for books in (self.decode.accounts, self.writer.accounts):
            found = await eventually(books, lambda found: found.settled)
            assert not found.error

    def _nobody(self, life: Life) -> PrefillChoice | None:
        return None


@asynccontextmanager
async def paired(transport: str, kind: type[Decode] = Decode) -> AsyncIterator[Pair]:
    pair = Pair(transport, kind)
    try:
        await pair.writer.start()
        yield pair
        await pair.settled()
        await pair.writer.close()
    finally:
        await pair.decode.close()
    assert pair.decode.num_wrong_bytes == 0
