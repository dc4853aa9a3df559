"""Redis as Baton uses it: members that write themselves in for the time of a lease, and are listed.

    baton:worker:ID   msgpack, lives for its lease      baton:workers   the ids, by when they run out
    baton:router:ID   the same of routers               baton:routers

Every key has an end, and the lists forget who has run out, so nothing grows. Clocks are Redis's own. It
knows what the bytes are only where the script compares incarnations. Everything that keeps Redis from
answering is `Unavailable`, within `_TIMEOUT_S`.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from baton.errors import ConfigError, InvalidArgument, Unavailable

Kind = Literal["worker", "router"]

_TIMEOUT_S = 1.0
_NUM_AT_ONCE = 100  # members are read at a time: reading an answer holds up the event loop
_LIST_MS = 3_600_000  # a list that nobody writes to any more is forgotten after an hour

# Writes a member unless a younger incarnation of it is there, whose number is then the answer.
_WRITE = """
local member, list = KEYS[1], KEYS[2]
local id, incarnation, value, lease_ms, list_ms = unpack(ARGV)
local known = redis.call('GET', member)
if known then
    local younger = cmsgpack.unpack(known)['incarnation']
    if younger > tonumber(incarnation) then return younger end
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', member, value, 'PX', lease_ms)
redis.call('ZADD', list, now_ms + lease_ms, id)
redis.call('ZREMRANGEBYSCORE', list, '-inf', now_ms)
redis.call('PEXPIRE', list, list_ms)
return 0
"""


class RedisStore:
    """One connection pool. Made on any thread, used on one event loop."""

    def __init__(self, url: str) -> None:
        try:
            self._redis = redis.asyncio.Redis.from_url(
                url,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),  # whoever asks asks again by itself
            )
        except ValueError as error:
            raise ConfigError(str(error), field="state") from error
        self._write = self._redis.register_script(_WRITE)

    async def write(
        self, kind: Kind, member_id: str, incarnation: int, value: bytes, lease_s: float
    ) -> None:
        """Raises InvalidArgument where a younger incarnation holds the lease."""
        younger: int = await _answer(
            self._write(
                keys=[f"baton:{kind}:{member_id}", f"baton:{kind}s"],
                args=[member_id, incarnation, value, int(lease_s * 1000), _LIST_MS],
            )
        )
        if younger:
            raise InvalidArgument(
                f"{member_id} is alive as incarnation {younger}; {incarnation} is an older one",
                field="info.incarnation",
            )

    async def end(self, kind: Kind, member_id: str, within_s: float) -> None:
        """Shortens the lease of a member that leaves."""
        await _answer(self._redis.pexpire(f"baton:{kind}:{member_id}", int(within_s * 1000)))

    async def read(self, kind: Kind) -> dict[str, bytes]:
        """Every member whose lease has not run out, by id."""
        listed: list[bytes] = await _answer(self._redis.zrange(f"baton:{kind}s", 0, -1))
        ids = [member_id.decode() for member_id in listed]
        found: dict[str, bytes] = {}
        for first in range(0, len(ids), _NUM_AT_ONCE):
            some = ids[first : first + _NUM_AT_ONCE]
            values: list[bytes | None] = await _answer(
                self._redis.mget([f"baton:{kind}:{each}" for each in some])
            )
            pairs = zip(some, values, strict=True)
            found |= {member_id: value for member_id, value in pairs if value is not None}
        return found

    async def close(self) -> None:
        await self._redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


async def _answer(asked: Any) -> Any:
    """Awaits a command; redis-py's annotations leave open whether it is one of asyncio."""
    try:
        return await asked
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis: {type(error).__name__}: {error}") from error
