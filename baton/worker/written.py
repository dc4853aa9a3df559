"""Lets the engine's thread wait until words have left this process: before a step that may be its last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from baton.rpc.outgoing import Outgoing

log = logging.getLogger(__name__)

_LONGEST_S = 0.1  # a peer that does not read holds no step up for longer


def wait_until_written(loop: asyncio.AbstractEventLoop, streams: Iterable[Outgoing[Any]]) -> None:
    """Waits until all that was put into `streams` has been written. They are looked at on `loop`, where they
    belong; not to be called there."""

    async def written() -> None:
        await asyncio.wait_for(
            asyncio.gather(*(stream.written() for stream in streams)), _LONGEST_S
        )

    try:
        asyncio.run_coroutine_threadsafe(written(), loop).result(2 * _LONGEST_S)
    except TimeoutError:
        log.warning("a peer reads slowly: a step begins before it knows what of")
