"""Connections between a prefill and a decode worker on which nothing passes any more, while both ends live
and no socket is closed."""

from __future__ import annotations

import pytest

from baton.errors import PeerLost
from kv_transfer.listener import ListeningReceiver
from tests.faults.decode import Decode
from tests.faults.pair import paired
from tests.faults.proxy import Proxy


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["before it is asked", "in the middle"])
@pytest.mark.parametrize("transport", ["shm", "torch_dist"])
async def test_words_that_are_swallowed_are_not_waited_for(transport: str, share: float) -> None:
    async with paired(transport) as pair:
        await pair.hand_over()
        proxy = pair.writer.proxy
        before = proxy.num_bytes
        await pair.hand_over()
        proxy.swallow(after_bytes=round(share * (proxy.num_bytes - before)))
        assert [type(error) for error in (await pair.serve()).lost] == [PeerLost]
        if transport == "shm":  # whose writer nobody has heard of, and may write
            assert (await pair.decode.accounts()).num_taken > 0
        proxy.let_pass()
        await pair.settled()
        await pair.recovered()


async def test_blocks_that_are_swallowed_are_not_waited_for() -> None:
    """The connection that carries them; words still pass."""
    async with paired("torch_dist") as pair:
        proxy = await proxied(pair.decode)
        await pair.hand_over()
        proxy.swallow()
        assert [type(error) for error in (await pair.serve()).lost] == [PeerLost]
        await pair.settled()  # with nothing posted, nothing can land
        proxy.let_pass()
        await pair.recovered()
        await proxy.close()


async def proxied(decode: Decode) -> Proxy:
    """Writers reach the decode worker's receiver through it."""
    receiver = decode._receivers["torch_dist"]
    assert isinstance(receiver, ListeningReceiver)
    listener = receiver._listener
    offered = listener.offer()
    proxy = Proxy(f"{offered['host']}:{offered['port']}")
    await proxy.start()
    through = offered | {"port": int(proxy.address.rpartition(":")[2])}
    vars(listener)["offer"] = lambda: through
    return proxy
