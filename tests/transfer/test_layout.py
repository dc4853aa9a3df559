"""The plan between pools of any tensor-parallel sizes, against copying element by element."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baton.errors import ConfigError, IncompatiblePeer
from kv_transfer.base import Write
from kv_transfer.layout import DTYPE_BYTES, PoolLayout, Slice, plan
from kv_transfer.pool import write_slices

SIZES = [1, 2, 4, 8]
LAYOUT = PoolLayout(
    num_layers=2, num_blocks=5, num_kv_heads=4, block_size=2, head_dim=4, dtype="fp16"
)
LATENT = replace(LAYOUT, num_kv_heads=1, head_dim=12, latent_dim=8)

Element = tuple[
    object, ...
]  # what it is: (layer, block, part, head, token, dim), or a head's scale


def elements(layout: PoolLayout) -> Iterator[tuple[Element, int]]:
    """Every element of one rank's pool, in the order in which it lies in memory, and its bytes."""
    quantized = layout.dtype in ("int8", "fp8")
    for layer in range(layout.num_layers):
        for block in range(layout.num_blocks):
            for part in ("latent",) if layout.latent_dim else ("k", "v"):
                for head in layout.heads:
                    if quantized:
                        yield (layer, block, part, head, "scale"), 8
                    for token in range(layout.block_size):
                        for dim in range(layout.head_dim):
                            place = (layer, block, part, head, token, dim)
                            yield place, DTYPE_BYTES[layout.dtype]


def places(layout: PoolLayout) -> dict[Element, range]:
    """Where in the pool each element lies."""
    found, at = {}, 0
    for element, size_bytes in elements(layout):
        found[element] = range(at, at + size_bytes)
        at += size_bytes
    assert at == layout.size_bytes
    return found


def ranks(layout: PoolLayout, tp_size: int) -> list[PoolLayout]:
    return [replace(layout, tp_size=tp_size, tp_rank=rank) for rank in range(tp_size)]


def ranges(
    source: PoolLayout, destination: PoolLayout, layer: int, blocks: list[tuple[int, int]]
) -> list[Slice]:
    """What a write of these (source, destination) blocks copies between the two pools."""
    sources, destinations = [a for a, _ in blocks], [b for _, b in blocks]
    write = Write(layer, sources, destinations)
    return write_slices(source, destination, plan(source, destination), write)


def sent(
    source: PoolLayout, destination: PoolLayout, layer: int, blocks: list[tuple[int, int]]
) -> NDArray[np.int64]:
    """For every byte of the destination's pool the number of the source's byte that lands there, or -1;
    an error where two do."""
    came_from = np.full(destination.size_bytes, -1, np.int64)
    for part in ranges(source, destination, layer, blocks):
        to = slice(part.destination, part.destination + part.size_bytes)
        assert (came_from[to] == -1).all()
        came_from[to] = np.arange(part.source, part.source + part.size_bytes)
    return came_from


@settings(deadline=None)
@given(
    layout=st.sampled_from([LAYOUT, LATENT]),
    dtype=st.sampled_from(list(DTYPE_BYTES)),
    num_heads=st.sampled_from(SIZES),
    tp_sizes=st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES)),
    blocks=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True).flatmap(
        lambda s: st.tuples(st.just(s), st.permutations(range(5)))
    ),
    layer=st.integers(0, 1),
)
def test_every_element_of_every_named_block_lands_once(
    layout: PoolLayout,
    dtype: str,
    num_heads: int,
    tp_sizes: tuple[int, int],
    blocks: tuple[list[int], list[int]],
    layer: int,
) -> None:
    layout = replace(layout, dtype=dtype, num_kv_heads=1 if layout.latent_dim else num_heads)
    pairs = list(zip(blocks[0], blocks[1], strict=False))
    sources = [(each, places(each)) for each in ranks(layout, tp_sizes[0])]
    source_of = {destination: source for source, destination in pairs}
    for destination in ranks(layout, tp_sizes[1]):
        arrivals = [(at, sent(source, destination, layer, pairs)) for source, at in sources]
        for element, here in places(destination).items():
            landed = [
                (at, came_from[here.start : here.stop])
                for at, came_from in arrivals
                if (came_from[here.start : here.stop] != -1).any()
            ]
            if element[0] != layer or element[1] not in source_of:
                assert not landed
                continue
            ((at, bytes_from),) = landed  # from one rank, and no other
            there = at[(layer, source_of[element[1]], *element[2:])]
            assert bytes_from.tolist() == list(there)


def test_equal_ranks_send_whole_pieces_and_neighbours_as_one() -> None:
    slices = plan(LAYOUT, LAYOUT)
    assert slices == (Slice(0, 0, LAYOUT.piece_bytes),)
    piece = LAYOUT.piece_bytes
    found = ranges(LAYOUT, LAYOUT, 1, [(0, 2), (1, 3), (3, 4), (4, 0)])
    first = LAYOUT.offset(1, 0)
    assert found == [
        Slice(first, first + 2 * piece, 2 * piece),
        Slice(first + 3 * piece, first + 4 * piece, piece),
        Slice(first + 4 * piece, first, piece),
    ]


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_scales_do_not_break_ranges_up(dtype: str) -> None:
    """A run of heads is one range of k and one of v, whatever its dtype; a whole piece is one."""
    layout = replace(LAYOUT, dtype=dtype, num_kv_heads=8)
    halves = ranks(layout, 2)
    numbers = [[len(plan(half, quarter)) for quarter in ranks(layout, 4)] for half in halves]
    assert numbers == [[2, 2, 0, 0], [0, 0, 2, 2]]
    assert len(plan(halves[1], halves[1])) == 1


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_pieces_and_slices_are_whole_words(dtype: str) -> None:
    layout = replace(LAYOUT, dtype=dtype)
    parts = plan(ranks(layout, 2)[0], ranks(layout, 4)[1])
    assert len(parts) == 2
    for part in parts:
        assert (part.source % 8, part.destination % 8, part.size_bytes % 8) == (0, 0, 0)
    assert layout.piece_bytes % 8 == 0


def test_decode_ranks_take_turns_among_those_that_hold_a_head() -> None:
    layout = replace(LAYOUT, num_kv_heads=1)
    senders = [
        [source.tp_rank for source in ranks(layout, 4) if plan(source, destination)]
        for destination in ranks(layout, 8)
    ]
    assert senders == [[0], [1], [2], [3]] * 2


@pytest.mark.parametrize("tp_size", SIZES)
def test_a_latent_cache_goes_whole_to_every_rank(tp_size: int) -> None:
    for destination in ranks(LATENT, tp_size):
        plans = [plan(source, destination) for source in ranks(LATENT, 4)]
        assert [parts for parts in plans if parts] == [(Slice(0, 0, LATENT.piece_bytes),)]
    assert LATENT.piece_bytes == 2 * (8 + 4) * 2  # tokens, latent and rotated dimensions, fp16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 3),
        ("num_kv_heads", 8),
        ("block_size", 4),
        ("head_dim", 8),
        *(("dtype", dtype) for dtype in DTYPE_BYTES if dtype != LAYOUT.dtype),
    ],
)
def test_what_no_copying_converts_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(IncompatiblePeer) as refused:
        plan(LAYOUT, replace(LAYOUT, **{field: value}))
    assert refused.value.field == field
    assert str(value) in refused.value.message


@pytest.mark.parametrize("latent_dim", [0, 4])
def test_a_latent_cache_is_for_its_like(latent_dim: int) -> None:
    """Neither for keys and values of the same size, nor for another split of the same dimensions."""
    with pytest.raises(IncompatiblePeer) as refused:
        plan(LATENT, replace(LATENT, latent_dim=latent_dim))
    assert refused.value.field == "latent_dim"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 0),
        ("num_blocks", 0),
        ("dtype", "fp7"),
        ("tp_rank", 1),
        ("tp_rank", -1),
        ("tp_size", 0),
        ("latent_dim", -1),
        ("latent_dim", 13),
    ],
)
def test_impossible_pools_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        replace(LATENT, **{field: value})
    assert refused.value.field == field


def test_ranks_share_heads_evenly_or_not_at_all() -> None:
    with pytest.raises(ConfigError) as refused:
        replace(LAYOUT, tp_size=3)
    assert refused.value.field == "tp_size"


def test_a_latent_cache_has_one_head() -> None:
    with pytest.raises(ConfigError) as refused:
        replace(LATENT, num_kv_heads=2)
    assert refused.value.field == "num_kv_heads"


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_strips_that_are_no_whole_words_are_refused(dtype: str) -> None:
    with pytest.raises(ConfigError) as refused:
        replace(LAYOUT, dtype=dtype, block_size=1, head_dim=3)
    assert refused.value.field == "block_size"


def test_the_number_of_blocks_may_differ() -> None:
    larger = replace(LAYOUT, num_blocks=50)
    (found,) = ranges(LAYOUT, larger, 1, [(4, 49)])
    assert found == Slice(LAYOUT.offset(1, 4), larger.offset(1, 49), LAYOUT.piece_bytes)
