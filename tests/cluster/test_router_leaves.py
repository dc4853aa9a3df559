"""A router that is told to leave (SIGTERM), as the SDK meets it: what does not end in its grace period goes
on at the next router, and nobody is told that it left."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

from baton import AsyncClient
from baton.client.results import Delta
from baton.cluster.local import LocalCluster
from tests.cluster.watching import explained, settled

LONG: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 1200}
GRACE_S = 0.1  # in which such an answer never ends


async def test_streams_and_new_requests_go_on_at_the_next_router(
    checkpoint: Path, temporary_folder: Path
) -> None:
    with (
        LocalCluster(
            str(checkpoint),
            num_routers=2,
            worker_flags={"deterministic": True, "num_blocks": 256},
            environment={"BATON_ROUTER_DRAIN_GRACE_S": str(GRACE_S)},
        ) as cluster,
        explained(cluster),
    ):
        async with AsyncClient(cluster.addresses) as client:
            expected = await client.generate("a prompt", **LONG)
            async with client.stream("a prompt", **LONG) as stream:
                deltas = await stream.receive()
                cluster.routers[0].popen.send_signal(signal.SIGTERM)
                new, rest = await asyncio.gather(
                    client.generate("another", max_tokens=1, ignore_eos=True), received(stream)
                )
                assert stream.num_continuations == 1
        assert len(new.token_ids) == 1
        deltas += rest
        assert tuple(token for each in deltas for token in each.token_ids) == expected.token_ids
        assert "".join(each.text for each in deltas) == expected.text
        assert await asyncio.to_thread(cluster.routers[0].popen.wait, 20) == 0
        await settled(cluster.addresses[1])


async def received(stream: Any) -> list[Delta]:
    return [delta async for delta in stream]
