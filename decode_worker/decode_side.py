"""What a decode worker brings to all its hand-offs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from baton.config import Times
from baton.v1 import prefill_pb2
from baton.worker.verifier import Verifier
from decode_worker.messages import Event
from kv_transfer.choose import Receivers, Senders


@dataclass(frozen=True, slots=True)
class DecodeSide:
    """What a decode worker brings to all its hand-offs. `hello` makes the first message of the stream of
    that number; `post` hands an event to the role; `fail` hears what only this process's end puts right."""

    receivers: Receivers
    senders: Senders
    verifier: Verifier
    hello: Callable[[int], prefill_pb2.PrefillHello]
    post: Callable[[Event], None]
    fail: Callable[[BaseException], None]
    times: Times
    stream_numbers: Iterator[int] = field(default_factory=lambda: count(1))
