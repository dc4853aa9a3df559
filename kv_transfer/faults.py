"""Faults on purpose: bytes that change where nobody should change them. For tests of what finds them.

A process reads `BATON_FAULTS` once, when it starts: `name:probability` pairs and a seed, with commas between
them. Without it nothing of this is in the way of anything.

    flip_in_flight    P: one byte of a layer of a block arrives wrong; P's checksum is that of what it sent
    flip_after_write  D: one byte of a block that has arrived changes before D looks at it
    seed              of the dice; a process throws them in the order of its blocks

    BATON_FAULTS=flip_in_flight:0.05,seed:1
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch

from baton.errors import ConfigError
from kv_transfer.base import Link, TransferId, Write, Written
from kv_transfer.pool import Pool

VARIABLE = "BATON_FAULTS"


class Connects(Protocol):
    """`kv_transfer.choose.Senders`, as seen from here."""

    def connect(self, offer: bytes) -> tuple[str, Link]: ...


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities, of one block each time."""

    flip_in_flight: float = 0.0
    flip_after_write: float = 0.0
    seed: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Those of `BATON_FAULTS`, none where it is not set. ConfigError where it says nothing known."""
        given: dict[str, float] = {}
        for entry in filter(None, environment.get(VARIABLE, "").split(",")):
            name, _, value = entry.partition(":")
            if name not in {field.name for field in fields(cls)}:
                raise ConfigError(f"names {name!r}, which is no fault", field=VARIABLE)
            try:
                given[name] = float(value)
            except ValueError as error:
                raise ConfigError(
                    f"{name} must be a number, is {value!r}", field=VARIABLE
                ) from error
        seed = int(given.pop("seed", 0))
        if any(not 0 <= probability <= 1 for probability in given.values()):
            raise ConfigError("probabilities are from 0 to 1", field=VARIABLE)
        return cls(**given, seed=seed)

    def arrived(self, pool: Pool) -> Callable[[int], None] | None:
        """What D's verifier calls for every block before it looks at it."""
        if not self.flip_after_write:
            return None
        dice = random.Random(self.seed)

        def flip(block: int) -> None:
            if dice.random() < self.flip_after_write:
                layer = dice.randrange(pool.layout.num_layers)
                _flip_byte(pool.piece(layer, block), dice)

        return flip

    def senders(self, pool: Pool, make: Callable[[Pool], Connects]) -> Connects:
        """P's way to other pools: `make(pool)`, or one that spoils what it sends."""
        senders = make(pool)
        return _SpoilingSenders(self, pool, senders, make) if self.flip_in_flight else senders


class _SpoilingSenders:
    """Beside every link it keeps a second one to the same peer, from a pool of one block: through that
    it sends what arrives wrong, over what has arrived right."""

    def __init__(
        self, faults: Faults, pool: Pool, senders: Connects, make: Callable[[Pool], Connects]
    ) -> None:
        self._faults = faults
        self._pool = pool
        self._senders = senders
        self._make = make

    def connect(self, offer: bytes) -> tuple[str, Link]:
        layout, device = replace(self._pool.layout, num_blocks=1), self._pool.memory.device
        spoiled = Pool(layout, torch.empty(layout.size_bytes, dtype=torch.uint8, device=device))
        transport, link = self._senders.connect(offer)
        _, spoiling = self._make(spoiled).connect(offer)
        return transport, _SpoilingLink(self._faults, link, spoiling, self._pool, spoiled)


class _SpoilingLink:
    """A write is done when its blocks have arrived and some of them, by the dice, were spoiled."""

    def __init__(
        self, faults: Faults, link: Link, spoiling: Link, pool: Pool, spoiled: Pool
    ) -> None:
        self._probability = faults.flip_in_flight
        self._dice = random.Random(faults.seed)
        self._link = link
        self._spoiling = spoiling
        self._pool = pool
        self._spoiled = spoiled

    def open(self, transfer: TransferId, blocks: Sequence[int]) -> None:
        self._spoiling.open(transfer, blocks)
        self._link.open(transfer, blocks)

    def write(self, transfer: TransferId, write: Write) -> Future[Written]:
        done: Future[Written] = Future()
        done.set_running_or_notify_cancel()

        def arrived(sent: Future[Written]) -> None:  # on the link's thread, one after another
            try:
                written = sent.result()
                self._spoil(transfer, write)
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(written)

        self._link.write(transfer, write).add_done_callback(arrived)
        return done

    def fence(self, transfer: TransferId) -> None:
        self._link.fence(transfer)
        self._spoiling.fence(transfer)

    def close(self) -> None:
        self._link.close()
        self._spoiling.close()

    def _spoil(self, transfer: TransferId, write: Write) -> None:
        blocks = zip(write.source_blocks, write.destination_blocks, strict=True)
        for source, destination in blocks:
            if self._dice.random() < self._probability:
                layer = self._dice.choice(write.layers)
                piece = self._spoiled.piece(layer, 0)
                piece.copy_(self._pool.piece(layer, source))
                _flip_byte(piece, self._dice)
                wrong = Write(layer, [0], [destination])
                self._spoiling.write(transfer, wrong).result()


def _flip_byte(piece: torch.Tensor, dice: random.Random) -> None:
    piece[dice.randrange(piece.numel())] ^= 0xFF
