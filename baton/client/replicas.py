"""The routers that a client may talk to. All of them serve any request; the client stays with one
until that one fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc

from baton.client.session import Session
from baton.errors import InvalidArgument, Unavailable
from baton.rpc.channel import channel
from baton.rpc.status import from_rpc_error

Answer = TypeVar("Answer")


class Replicas:
    """Channels and sessions are made on first use, since they belong to the event loop that runs then."""

    def __init__(self, addresses: str | Sequence[str]) -> None:
        self.addresses = (addresses,) if isinstance(addresses, str) else tuple(addresses)
        if not self.addresses:
            raise InvalidArgument("must name at least one router", field="addresses")
        self._current = 0
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._sessions: dict[str, Session] = {}

    def current(self) -> str:
        """The address to use now."""
        return self.addresses[self._current]

    def channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = channel(address)
        return self._channels[address]

    def session(self, address: str) -> Session:
        if address not in self._sessions:
            self._sessions[address] = Session(self.channel(address))
        return self._sessions[address]

    def failed(self, address: str) -> None:
        """Others come first from now on. Told by several streams at once, it moves on once."""
        if address == self.current():
            self._current = (self._current + 1) % len(self.addresses)

    async def call(self, unary: Callable[[grpc.aio.Channel], Awaitable[Answer]]) -> Answer:
        """The answer of the first replica that is there; the typed error of one that refuses."""
        num_left = len(self.addresses)
        while True:
            num_left -= 1
            address = self.current()
            try:
                return await unary(self.channel(address))
            except grpc.aio.AioRpcError as error:
                typed = from_rpc_error(error)
                if isinstance(typed, Unavailable):
                    self.failed(address)
                    if num_left:
                        continue
                raise typed from error

    async def close(self) -> None:
        while self._sessions:
            _, session = self._sessions.popitem()
            await session.close()
        while self._channels:
            _, link = self._channels.popitem()
            await link.close(grace=None)
