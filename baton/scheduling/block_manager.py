"""Who owns which KV block. Pure bookkeeping: knows no tensor, no request and no clock.

Every block is in exactly one state:

    free         no content anybody wants
    held         referenced by one or more samples
    cached       published under its id and referenced by nobody: a hit for later prompts, evictable
    quarantined  a writer may still touch it; unusable until that is disproved

        allocate          publish + release          allocate (evicts the least recently used)
    free -------> held -------------------> cached -------------------------------------> held
      ^            |  ^                        |  acquire (a prefix hit)
      +--release---+  +------------------------+
    held --quarantine--> quarantined --lift--> free

`check_integrity` proves free + held + cached + quarantined = total.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from baton.errors import IntegrityError
from baton.types import BlockId


@dataclass(frozen=True, slots=True)
class BlockCounts:
    total: int
    free: int
    held: int
    cached: int
    quarantined: int


class BlockManager:
    """Blocks 0 .. num_blocks - 1 of one pool, with automatic prefix caching (LRU, reference counts)."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._num_references = [0] * num_blocks
        self._id_of: list[BlockId | None] = [None] * num_blocks
        self._published: dict[BlockId, int] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._quarantined: set[int] = set()
        self._changes: list[tuple[bool, BlockId]] = []

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could give now."""
        return len(self._free) + len(self._evictable)

    @property
    def published(self) -> Iterable[BlockId]:
        """The ids a prefix lookup can hit, in no particular order."""
        return self._published.keys()

    def num_matched(self, block_ids: Iterable[BlockId], *, held: bool = False) -> int:
        """The number of leading ids that are published here; with `held` only those that somebody holds:
        to acquire these takes none that is available."""
        num_matched = 0
        for block_id in block_ids:
            block = self._published.get(block_id)
            if block is None or (held and not self._num_references[block]):
                break
            num_matched += 1
        return num_matched

    def acquire(self, block_ids: Sequence[BlockId]) -> list[int]:
        """References the blocks of the longest published prefix of `block_ids` and returns them."""
        blocks = [
            self._published[block_id] for block_id in block_ids[: self.num_matched(block_ids)]
        ]
        self.share(blocks)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a reference to each of `blocks`, which are held or cached."""
        for block in blocks:
            if self._num_references[block] == 0:
                del self._evictable[block]
            self._num_references[block] += 1

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Takes `num_blocks` blocks with one reference each, evicting cached ones; None if too few."""
        if num_blocks > self.num_available:
            return None
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(num_blocks)]
        for block in blocks:
            self._num_references[block] = 1
        return blocks

    def publish(self, block: int, block_id: BlockId) -> None:
        """Makes a held block, complete and verified, findable. Content known already stays unpublished."""
        if self._num_references[block] == 0:
            raise IntegrityError(f"block {block} is published while nobody holds it")
        if block_id in self._published or self._id_of[block] is not None:
            return
        self._published[block_id] = block
        self._id_of[block] = block_id
        self._changes.append((True, block_id))

    def release(self, blocks: Sequence[int]) -> None:
        """Drops one reference of each. The last of `blocks` becomes the first to be evicted, so that a
        prefix outlives what was built on it."""
        for block in reversed(blocks):
            if self._num_references[block] <= 0:
                raise IntegrityError(f"block {block} is released more often than it was taken")
            self._num_references[block] -= 1
            if self._num_references[block] == 0:
                if self._id_of[block] is None:
                    self._free.append(block)
                else:
                    self._evictable[block] = None

    def quarantine(self, blocks: Iterable[int]) -> None:
        """Takes unpublished blocks from their only holder until `lift`: a writer may still touch them."""
        for block in blocks:
            if self._num_references[block] != 1 or self._id_of[block] is not None:
                raise IntegrityError(f"block {block} is quarantined while shared or published")
            self._num_references[block] = 0
            self._quarantined.add(block)

    def lift(self, blocks: Iterable[int]) -> None:
        """Ends the quarantine of `blocks`: the writer is proved to be gone."""
        for block in blocks:
            self._quarantined.remove(block)
            self._free.append(block)

    def take_changes(self) -> list[tuple[bool, BlockId]]:
        """The published (True, id) and removed (False, id) blocks since the last call, in order."""
        changes, self._changes = self._changes, []
        return changes

    def counts(self) -> BlockCounts:
        free, cached = len(self._free), len(self._evictable)
        quarantined = len(self._quarantined)
        held = self.num_blocks - free - cached - quarantined
        return BlockCounts(self.num_blocks, free, held, cached, quarantined)

    def check_integrity(self, held: Iterable[Sequence[int]] = ()) -> None:
        """Raises IntegrityError unless every block is in exactly one state and the references are
        exactly those of the block tables `held`."""
        expected = [0] * self.num_blocks
        for table in held:
            for block in table:
                expected[block] += 1
        if expected != self._num_references:
            wrong = [b for b in range(self.num_blocks) if expected[b] != self._num_references[b]]
            raise IntegrityError(
                f"blocks {wrong[:8]} have {[self._num_references[b] for b in wrong[:8]]} references, "
                f"their holders say {[expected[b] for b in wrong[:8]]}"
            )
        states = [*self._free, *self._evictable, *self._quarantined]
        states += [b for b in range(self.num_blocks) if self._num_references[b]]
        if sorted(states) != list(range(self.num_blocks)):
            raise IntegrityError("a block is in two states, or in none")
        for block_id, block in self._published.items():
            if self._id_of[block] != block_id:
                raise IntegrityError(
                    f"block {block} is published under an id that it does not carry"
                )
        if sum(i is not None for i in self._id_of) != len(self._published):
            raise IntegrityError("a block carries an id that is not published")

    def _evict(self) -> int:
        block, _ = self._evictable.popitem(last=False)
        block_id = self._id_of[block]
        assert block_id is not None
        self._id_of[block] = None
        del self._published[block_id]
        self._changes.append((False, block_id))
        return block
