"""The plan between pools of any tensor-parallel sizes, against copying element by element."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import ConfigError, IncompatiblePeer
from kv_transfer.layout import PoolLayout, Slice, plan, pool_slices

SIZES = [1, 2, 4, 8]
LAYOUT = PoolLayout(
    num_layers=2, num_blocks=5, num_kv_heads=4, block_size=2, head_dim=2, dtype="fp16"
)


def label(layout: PoolLayout, layer: int, block: int, part: int, head: int) -> bytes:
    """Content that says what it is: no two ranges of a pool have the same."""
    return bytes([1 + layer, block, part, head]).ljust(layout.head_bytes, b"\xee")


def filled(layout: PoolLayout) -> bytearray:
    """The pool of one rank, written head by head as the engine would."""
    return bytearray(
        b"".join(
            label(layout, layer, block, part, head)
            for layer in range(layout.num_layers)
            for block in range(layout.num_blocks)
            for part in range(2)
            for head in layout.heads
        )
    )


def ranks(layout: PoolLayout, tp_size: int) -> list[PoolLayout]:
    return [replace(layout, tp_size=tp_size, tp_rank=rank) for rank in range(tp_size)]


@given(
    num_heads=st.sampled_from(SIZES),
    source_size=st.sampled_from(SIZES),
    destination_size=st.sampled_from(SIZES),
    blocks=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True).flatmap(
        lambda s: st.tuples(st.just(s), st.permutations(range(5)))
    ),
    layer=st.integers(0, 1),
)
def test_every_byte_of_every_named_block_lands_once(
    num_heads: int,
    source_size: int,
    destination_size: int,
    blocks: tuple[list[int], list[int]],
    layer: int,
) -> None:
    layout = replace(LAYOUT, num_kv_heads=num_heads)
    pairs = list(zip(blocks[0], blocks[1], strict=False))
    sources = [(each, filled(each)) for each in ranks(layout, source_size)]
    for destination in ranks(layout, destination_size):
        landed = bytearray(destination.size_bytes)
        times = [0] * destination.size_bytes
        for source, memory in sources:
            for part in pool_slices(source, destination, layer, pairs, plan(source, destination)):
                to = range(part.destination, part.destination + part.size_bytes)
                landed[to.start : to.stop] = memory[part.source : part.source + part.size_bytes]
                for byte in to:
                    times[byte] += 1
        expected, expected_times = bytearray(destination.size_bytes), [0] * destination.size_bytes
        for source_block, destination_block in pairs:
            content = b"".join(
                label(destination, layer, source_block, part, head)
                for part in range(2)
                for head in destination.heads
            )
            begin = destination.offset(layer, destination_block)
            end = begin + destination.piece_bytes
            expected[begin:end] = content
            expected_times[begin:end] = [1] * destination.piece_bytes
        assert landed == expected
        assert times == expected_times


def test_equal_ranks_send_whole_pieces_and_neighbours_as_one() -> None:
    slices = plan(LAYOUT, LAYOUT)
    assert slices == (Slice(0, 0, LAYOUT.piece_bytes),)
    piece = LAYOUT.piece_bytes
    found = list(pool_slices(LAYOUT, LAYOUT, 1, [(0, 2), (1, 3), (3, 4), (4, 0)], slices))
    first = LAYOUT.offset(1, 0)
    assert found == [
        Slice(first, first + 2 * piece, 2 * piece),
        Slice(first + 3 * piece, first + 4 * piece, piece),
        Slice(first + 4 * piece, first, piece),
    ]


def test_decode_ranks_take_turns_among_those_that_hold_a_head() -> None:
    layout = replace(LAYOUT, num_kv_heads=1)
    senders = [
        [source.tp_rank for source in ranks(layout, 4) if plan(source, destination)]
        for destination in ranks(layout, 8)
    ]
    assert senders == [[0], [1], [2], [3]] * 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_layers", 3), ("num_kv_heads", 8), ("block_size", 4), ("head_dim", 4), ("dtype", "bf16")],
)
def test_what_no_copying_converts_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(IncompatiblePeer) as refused:
        plan(LAYOUT, replace(LAYOUT, **{field: value}))
    assert refused.value.field == field
    assert str(value) in refused.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 0),
        ("num_blocks", 0),
        ("dtype", "fp7"),
        ("tp_rank", 1),
        ("tp_rank", -1),
        ("tp_size", 3),
        ("tp_size", 0),
        ("block_size", 1),
    ],
)
def test_impossible_pools_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        replace(LAYOUT, **{field: value})
    assert refused.value.field == field


def test_the_number_of_blocks_may_differ() -> None:
    larger = replace(LAYOUT, num_blocks=50)
    (found,) = pool_slices(LAYOUT, larger, 1, [(4, 49)], plan(LAYOUT, larger))
    assert found == Slice(LAYOUT.offset(1, 4), larger.offset(1, 49), LAYOUT.piece_bytes)
