"""A request of a trace, as the simulator takes it: when it comes, how long it is, what it shares. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from baton.errors import ConfigError
from baton.types import BlockId


@dataclass(frozen=True, slots=True)
class Arrival:
    """`block_ids`: of the prompt's full blocks; prompts that begin alike have the same first ids."""

    at_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    block_ids: tuple[BlockId, ...]


def block_ids(
    hashes: Sequence[int], hashed_size: int, num_tokens: int, block_size: int, unique: int
) -> tuple[BlockId, ...]:
    """Ids of the full blocks of `block_size` in a prompt of `num_tokens`, of which the trace tells the
    hashes of blocks of `hashed_size`. What has no hash is shared with nobody; `unique` names the prompt.
    Raises ConfigError unless one size divides the other."""
    num_blocks = num_tokens // block_size
    if not hashes:
        return tuple(_id(index, unique, shared=False) for index in range(num_blocks))
    if hashed_size % block_size and block_size % hashed_size:
        raise ConfigError(
            f"must divide the trace's {hashed_size} tokens, or be a multiple of it, is {block_size}",
            field="block_size",
        )
    shared = tuple(_resized(hashes, hashed_size, num_blocks, block_size))
    rest = (_id(index, unique, shared=False) for index in range(len(shared), num_blocks))
    return (*shared, *rest)


def _resized(
    hashes: Sequence[int], hashed_size: int, num_blocks: int, block_size: int
) -> Iterator[BlockId]:
    """Hashes are of whole prefixes, so the last one that a block reaches says all of it."""
    for index in range(min(num_blocks, len(hashes) * hashed_size // block_size)):
        last_token = (index + 1) * block_size - 1
        number, offset = divmod(last_token, hashed_size)
        yield _id(offset, hashes[number], shared=True)


def _id(offset: int, number: int, *, shared: bool) -> BlockId:
    """Spread over the first byte, as real ids are."""
    spread = (number + offset) & 0xFF
    return BlockId(
        bytes((spread, shared)) + number.to_bytes(8, "little") + offset.to_bytes(6, "little")
    )
