"""Copies of whole blocks that the next step performs before it computes (copy on write). Pure bookkeeping.

    queue ----------> queued --take--> in the step --done--> over
                         +----drop----> never made

A copy belongs to the sample into whose last block it goes: it is made only while that sample holds the block.
Its source is held for it, whatever becomes of those who computed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from baton.errors import IntegrityError
from baton.scheduling.block_manager import BlockManager
from baton.scheduling.sample import Sample


class BlockCopies:
    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks
        self._queued: dict[int, tuple[int, int]] = {}  # by the sample's handle
        self._in_step: list[tuple[int, int]] = []

    @property
    def sources(self) -> Sequence[int]:
        """The blocks held for copies."""
        return [source for source, _ in (*self._queued.values(), *self._in_step)]

    def queue(self, source: int, sample: Sample) -> None:
        """The last block of `sample` is to become what `source` is."""
        self._blocks.share([source])
        self._queued[sample.handle] = (source, sample.block_table[-1])

    def drop(self, sample: Sample) -> None:
        """`sample` is about to give its blocks back: what was to be copied there no longer is."""
        copy = self._queued.pop(sample.handle, None)
        if copy is not None:
            self._blocks.release(copy[:1])

    def take(self) -> Sequence[tuple[int, int]]:
        """The copies (source, destination) of the step that is being planned."""
        self._in_step = list(self._queued.values())
        self._queued = {}
        return self._in_step

    def done(self) -> None:
        """The step has been run."""
        self._blocks.release([source for source, _ in self._in_step])
        self._in_step = []

    def check_integrity(self, samples: Iterable[Sample]) -> None:
        """Raises IntegrityError unless every copy that is queued goes into the last block of one of
        `samples`, the one that it belongs to."""
        tables = {sample.handle: sample.block_table for sample in samples}
        for handle, (source, destination) in self._queued.items():
            if destination not in tables.get(handle, ())[-1:]:
                raise IntegrityError(
                    f"block {source} is to be copied to block {destination}, which sample {handle} "
                    "does not hold"
                )
