"""What a worker's books say when nothing is to do any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from baton.errors import IntegrityError
from baton.scheduling.block_manager import BlockManager


class Checked(Protocol):
    def check_integrity(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Accounts:
    """`num_taken`: blocks that are held or quarantined. `error`: where the books contradict themselves."""

    num_taken: int
    num_requests: int
    error: str = ""

    @property
    def settled(self) -> bool:
        return not self.num_taken and not self.num_requests


def accounts(blocks: BlockManager, num_requests: int, scheduler: Checked) -> Accounts:
    """On the engine's thread."""
    counts = blocks.counts()
    try:
        scheduler.check_integrity()
    except IntegrityError as error:
        return Accounts(counts.held + counts.quarantined, num_requests, str(error))
    return Accounts(counts.held + counts.quarantined, num_requests)
