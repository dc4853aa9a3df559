"""The attention kernel: right against float64, and the same bits whatever is computed beside a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from baton.engine import kernels
from baton.engine.kv_cache import KvCache, KvCacheLayout, LayerCache
from baton.errors import Internal

Float64 = npt.NDArray[np.float64]


@pytest.fixture
def native() -> kernels.Kernels:
    loaded = kernels.load()
    if loaded is None:
        pytest.skip("no C compiler on this machine, or BATON_KERNELS=off")
    return loaded


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(7)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Shape:
    num_heads: int = 14
    num_kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 64
    dtype: str = "fp32"
    window: int = 0

    @property
    def layout(self) -> KvCacheLayout:
        return KvCacheLayout(1, self.num_kv_heads, self.block_size, self.head_dim, self.dtype)

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)


class Cache:
    """A layer's cache that is NaN wherever nothing was written (by its scale where it is quantized), and who
    owns which of its blocks."""

    def __init__(self, shape: Shape, num_blocks: int) -> None:
        size_bytes = shape.layout.size_bytes(num_blocks)
        nowhere_written = torch.full((size_bytes,), 0xFF, dtype=torch.uint8)
        (self.layer,) = KvCache(shape.layout, num_blocks, buffer=nowhere_written).layers
        self._block_size = shape.block_size
        self._free = torch.randperm(num_blocks).tolist()

    def allocate(self, num_tokens: int) -> list[int]:
        return [self._free.pop() for _ in range(-(-num_tokens // self._block_size))]

    def slots(self, table: list[int], start: int, end: int) -> Tensor:
        positions = range(start, end)
        size = self._block_size
        return torch.tensor([table[p // size] * size + p % size for p in positions]).long()


@dataclass(frozen=True)
class Prompt:
    """All of a request's queries, keys and values [num_tokens, heads, head_dim], and its blocks."""

    q: Tensor
    k: Tensor
    v: Tensor
    table: list[int]

    @staticmethod
    def random(shape: Shape, cache: Cache, num_tokens: int) -> Prompt:
        heads, kv_heads = shape.num_heads, shape.num_kv_heads
        fused = torch.randn(num_tokens, heads + 2 * kv_heads, shape.head_dim)  # strided, as in use
        q, k, v = fused.split([heads, kv_heads, kv_heads], dim=1)
        return Prompt(q, k, v, cache.allocate(num_tokens))


@dataclass(frozen=True)
class Piece:
    """Tokens [start, end) of a prompt, fed in one step."""

    prompt: Prompt
    start: int
    end: int


def step(native: kernels.Kernels, shape: Shape, cache: Cache, pieces: list[Piece]) -> list[Tensor]:
    """Write the pieces' KV, then attend: the outputs of each piece."""
    for p in pieces:
        slots = cache.slots(p.prompt.table, p.start, p.end)
        native.write_kv(
            cache.layer, slots, p.prompt.k[p.start : p.end], p.prompt.v[p.start : p.end]
        )
    lengths = [p.end - p.start for p in pieces]
    width = max(len(p.prompt.table) for p in pieces)
    tables = [p.prompt.table + [-1] * (width - len(p.prompt.table)) for p in pieces]
    q = torch.cat([p.prompt.q[p.start : p.end] for p in pieces])
    out = torch.full(q.shape, torch.nan)
    native.attend(
        q,
        cache.layer,
        torch.tensor(tables, dtype=torch.int32),
        torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        torch.tensor([p.start for p in pieces], dtype=torch.int32),
        shape.scale,
        shape.window,
        out,
    )
    return list(out.split(lengths))


def whole(prompt: Prompt) -> Piece:
    return Piece(prompt, 0, len(prompt.q))


def held(shape: Shape, x: Tensor) -> Float64:
    """`x` [num_tokens, num_kv_heads, head_dim] as the cache's dtype holds it after one write."""
    if shape.dtype in ("fp32", "fp16"):
        return np.asarray(x.to(shape.layout.torch_dtype).double().numpy())
    return np.concatenate([rounded(shape.dtype, block) for block in x.split(shape.block_size)])


def rounded(dtype: str, block: Tensor) -> Float64:
    """A block's values [num_tokens, num_kv_heads, head_dim], each head with the power of two as its scale
    that just holds its largest."""
    x = block.double().numpy()
    binade = np.floor(np.log2(np.abs(x).max(axis=(0, 2), keepdims=True)))
    if dtype == "int8":
        step = 2.0 ** (binade - 6)
        return np.asarray((np.floor(x / step) + 0.5) * step)
    scale = 2.0 ** (binade - 7)
    digit = 2.0 ** (np.floor(np.log2(np.abs(x / scale))) - 3)  # the last of four significant bits
    found = np.round(x / scale / digit) * digit
    return np.asarray(np.where(np.abs(found) < 2.0**-6, 0, found) * scale)


def expected(shape: Shape, prompt: Prompt) -> Float64:
    """Attention of a whole prompt in float64, over K and V as the cache's dtype holds them."""
    num_tokens = len(prompt.q)
    group = shape.num_heads // shape.num_kv_heads
    q = prompt.q.double().numpy()
    k = held(shape, prompt.k).repeat(group, axis=1)
    v = held(shape, prompt.v).repeat(group, axis=1)
    ago = np.arange(num_tokens)[:, None] - np.arange(num_tokens)[None, :]
    seen = (ago >= 0) & ((ago < shape.window) if shape.window else True)
    scores = np.where(seen, np.einsum("qhd,khd->hqk", q, k, optimize=True) * shape.scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    result: Float64 = np.einsum("hqk,khd->qhd", weights, v, optimize=True)
    return result


@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(dtype="fp16"),
        Shape(1, 1, 16, 16),
        Shape(2, 1, 32, 16, "fp16"),
        Shape(4, 4, 80, 64),
        Shape(4, 2, 80, 16, "fp16"),
        Shape(2, 2, 128, 64, "fp16"),
        Shape(4, 1, 256, 16),
        Shape(3, 1, 8, 1),
        Shape(2, 1, 13, 5),  # nothing divides anything
        Shape(2, 1, 13, 5, "fp16"),
        Shape(dtype="int8"),
        Shape(dtype="fp8"),
        Shape(4, 2, 80, 16, "int8"),
        Shape(4, 2, 80, 16, "fp8"),
        Shape(2, 1, 13, 8, "int8"),
        Shape(2, 1, 13, 8, "fp8"),
        Shape(3, 1, 8, 1, "int8"),
        Shape(4, 2, 64, 128, "int8"),
        Shape(4, 1, 256, 16, "fp8"),
        Shape(window=50, dtype="int8"),
        Shape(4, 4, 32, 16, "fp8", window=100),
        Shape(4, 2, 64, 128),
        Shape(64, 1, 256, 16),  # the largest group and head
        Shape(window=1),
        Shape(window=50, dtype="fp16"),
        Shape(4, 4, 32, 16, window=100),
        Shape(4, 4, 32, 16, window=64),
    ],
    ids=str,
)
def test_attention_equals_float64(native: kernels.Kernels, shape: Shape) -> None:
    lengths = [1, 64, 65, 130, 200, 333]
    cache = Cache(shape, num_blocks=sum(-(-n // shape.block_size) for n in lengths))
    prompts = [Prompt.random(shape, cache, n) for n in lengths]
    outputs = step(native, shape, cache, [whole(p) for p in prompts])
    for prompt, output in zip(prompts, outputs, strict=True):
        np.testing.assert_allclose(output, expected(shape, prompt), rtol=1e-5, atol=3e-6)


def test_attention_of_a_long_context_equals_float64(native: kernels.Kernels) -> None:
    shape = Shape(2, 1, 64, 64)
    cache = Cache(shape, num_blocks=512)
    prompt = Prompt.random(shape, cache, 32768)
    slots = cache.slots(prompt.table, 0, 32768)
    native.write_kv(cache.layer, slots, prompt.k, prompt.v)
    (output,) = step(native, shape, cache, [Piece(prompt, 32767, 32768)])
    scores = torch.einsum("hd,nkd->hn", prompt.q[-1].double(), prompt.k.double()) * shape.scale
    right = torch.softmax(scores, dim=-1) @ prompt.v[:, 0].double()
    np.testing.assert_allclose(output[0], right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [0, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("heads", [(14, 2), (4, 4), (6, 2), (12, 1)], ids=str)
@pytest.mark.parametrize("block_size", [16, 64])
def test_bits_do_not_depend_on_chunks_batch_or_threads(
    native: kernels.Kernels,
    window: int,
    dtype: str,
    heads: tuple[int, int],
    block_size: int,
) -> None:
    shape = Shape(*heads, 64, block_size, dtype, window)
    cache = Cache(shape, num_blocks=200)
    prompt = Prompt.random(shape, cache, 300)
    others = [Prompt.random(shape, cache, n) for n in (1, 77, 128, 500)]
    (alone,) = step(native, shape, cache, [whole(prompt)])

    for chunk in (1, 7, 64, 100):
        again = replace(prompt, table=cache.allocate(300))  # positions not yet written are NaN
        parts = [
            step(native, shape, cache, [Piece(again, at, min(at + chunk, 300))])[0]
            for at in range(0, 300, chunk)
        ]
        assert np.array_equal(alone, torch.cat(parts)), f"chunks of {chunk}"
        cache._free += again.table
        cache.layer.values[again.table] = torch.nan

    batch = [whole(others[0]), Piece(others[1], 0, 77), whole(prompt), *map(whole, others[2:])]
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        assert np.array_equal(alone, step(native, shape, cache, batch)[2]), f"{num_threads} threads"


@pytest.mark.parametrize("head_dim", [8, 13, 24, 40])
def test_bits_do_not_depend_on_chunks_where_vectors_do_not_divide_a_head(
    native: kernels.Kernels, head_dim: int
) -> None:
    shape = Shape(6, 2, head_dim, 16)
    cache = Cache(shape, num_blocks=40)
    prompt = Prompt.random(shape, cache, 100)
    (alone,) = step(native, shape, cache, [whole(prompt)])
    rows = [step(native, shape, cache, [Piece(prompt, at, at + 1)])[0] for at in range(100)]
    assert np.array_equal(alone, torch.cat(rows))


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
@pytest.mark.parametrize("head_dim", [64, 24])
def test_bits_over_quantized_kv_do_not_depend_on_batch_or_threads(
    native: kernels.Kernels, dtype: str, head_dim: int
) -> None:
    """On chunks they may depend: rows of one step share the scale of the block that they fill."""
    shape = Shape(6, 2, head_dim, 16, dtype)
    cache = Cache(shape, num_blocks=100)
    prompt = Prompt.random(shape, cache, 300)
    (alone,) = step(native, shape, cache, [whole(prompt)])
    others = [Prompt.random(shape, cache, n) for n in (1, 77, 500)]
    batch = [whole(others[0]), Piece(others[1], 0, 77), whole(prompt), whole(others[2])]
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        assert np.array_equal(alone, step(native, shape, cache, batch)[2]), f"{num_threads} threads"
    (again,) = step(native, shape, cache, [Piece(prompt, 299, 300)])  # nothing comes after it
    assert np.array_equal(alone[299:], again)


def test_a_row_is_blind_to_what_comes_after_it(native: kernels.Kernels) -> None:
    """Infinite and NaN values of later tokens of the same chunk leave earlier rows as they are."""
    shape = Shape(num_heads=4, num_kv_heads=4)
    cache = Cache(shape, num_blocks=8)
    prompt = Prompt.random(shape, cache, 100)
    (clean,) = step(native, shape, cache, [whole(prompt)])
    prompt.v[50], prompt.k[60] = torch.inf, torch.nan
    (output,) = step(native, shape, cache, [whole(prompt)])
    assert np.array_equal(clean[:50], output[:50])
    assert not torch.isfinite(output[50:]).any()
    assert torch.isnan(output[60:]).all()


def test_large_scores_neither_overflow_nor_vanish(native: kernels.Kernels) -> None:
    shape = Shape(num_heads=2, num_kv_heads=2)
    cache = Cache(shape, num_blocks=4)
    prompt = Prompt.random(shape, cache, 150)
    prompt.q.mul_(300)
    (output,) = step(native, shape, cache, [whole(prompt)])
    np.testing.assert_allclose(output, expected(shape, prompt), rtol=2e-3, atol=2e-3)


def test_slices_may_be_empty(native: kernels.Kernels) -> None:
    shape = Shape()
    cache = Cache(shape, num_blocks=8)
    prompt = Prompt.random(shape, cache, 70)
    empty = Piece(Prompt.random(shape, cache, 5), 0, 0)
    outputs = step(native, shape, cache, [empty, whole(prompt), empty])
    np.testing.assert_allclose(outputs[1], expected(shape, prompt), rtol=1e-5, atol=3e-6)


# --- wrong calls ------------------------------------------------------------------------------------


@dataclass
class Call:
    """The arguments of a good `attend`: 3 rows at positions 60..62 of one request."""

    q: Tensor
    layer_cache: LayerCache
    block_tables: Tensor
    query_starts: Tensor
    starts: Tensor
    out: Tensor
    window: int = 0

    @staticmethod
    def good() -> Call:
        def ints(*values: int) -> Tensor:
            return torch.tensor(values, dtype=torch.int32)

        return Call(
            q=torch.randn(3, 4, 32),
            layer_cache=LayerCache(torch.randn(6, 2, 2, 16, 32)),
            block_tables=ints(3, 1, 5, 0)[None],
            query_starts=ints(0, 3),
            starts=ints(60),
            out=torch.empty(3, 4, 32),
        )

    def run(self, native: kernels.Kernels) -> None:
        native.attend(
            self.q,
            self.layer_cache,
            self.block_tables,
            self.query_starts,
            self.starts,
            0.2,
            self.window,
            self.out,
        )


WHOLE = Cache(Shape(4, 2, 32, 16, "int8"), num_blocks=6)
WRONG: dict[str, tuple[dict[str, object], str]] = {
    "block too high": ({"block_tables": torch.tensor([[3, 1, 6, 0]]).int()}, "block_tables"),
    "block negative": ({"block_tables": torch.tensor([[-1, 1, 2, 0]]).int()}, "block_tables"),
    "table too short": ({"block_tables": torch.tensor([[3, 1, 2]]).int()}, "starts"),
    "table of int64": ({"block_tables": torch.tensor([[3, 1, 2, 0]])}, "block_tables"),
    "start negative": ({"starts": torch.tensor([-1]).int()}, "starts"),
    "start too late": ({"starts": torch.tensor([62]).int()}, "starts"),
    "rows left over": ({"query_starts": torch.tensor([0, 2]).int()}, "query_starts"),
    "rows too many": ({"query_starts": torch.tensor([0, 4]).int()}, "query_starts"),
    "one start missing": ({"query_starts": torch.tensor([3]).int()}, "query_starts"),
    "q of another shape": ({"q": torch.randn(3, 2, 32)}, "attend.q"),
    "q in halves": ({"q": torch.randn(3, 4, 32).half()}, "attend.q"),
    "q transposed": ({"q": torch.randn(4, 3, 32).transpose(0, 1)}, "attend.q"),
    "cache in bf16": (
        {"layer_cache": LayerCache(torch.ones(6, 2, 2, 16, 32).bfloat16())},
        "layer_cache",
    ),
    "cache strided": (
        {"layer_cache": LayerCache(torch.ones(6, 2, 2, 16, 64)[..., ::2])},
        "layer_cache",
    ),
    "cache without scales": ({"layer_cache": LayerCache(WHOLE.layer.values)}, "layer_cache"),
    "cache with strange scales": (
        {"layer_cache": LayerCache(WHOLE.layer.values, torch.ones(6, 2, 2))},
        "layer_cache",
    ),
    "cache of other heads": (
        {"layer_cache": LayerCache(torch.ones(6, 2, 3, 16, 32))},
        "attend.out",
    ),
    "cache of other dim": ({"layer_cache": LayerCache(torch.ones(6, 2, 2, 16, 16))}, "attend.out"),
    "out strided": ({"out": torch.empty(3, 4, 64)[..., :32]}, "attend.out"),
    "window negative": ({"window": -1}, "sliding_window"),
}


def test_a_good_call_passes(native: kernels.Kernels) -> None:
    Call.good().run(native)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_attend_is_an_error(native: kernels.Kernels, name: str) -> None:
    changes, field = WRONG[name]
    call = Call.good()
    for key, value in changes.items():
        setattr(call, key, value)
    with pytest.raises(Internal, match=field):
        call.run(native)
