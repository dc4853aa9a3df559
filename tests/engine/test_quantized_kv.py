"""Keys and values in one byte: what a block holds, whoever writes it and in whatever chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from baton.engine import kernels
from baton.engine.attention.base import AttentionBatch
from baton.engine.attention.compiled import CompiledAttention
from baton.engine.attention.sdpa import TorchAttention
from baton.engine.attention.spec import AttentionSpec
from baton.engine.kv_cache import QUANTIZED, KvCache, KvCacheLayout, LayerCache
from baton.engine.step_inputs import StepLimits, build_inputs
from baton.errors import ConfigError
from baton.scheduling.step_plan import NewSample, Slice
from tests.engine.harness import GREEDY, Driver, prompt_tokens

BLOCK_SIZE, NUM_HEADS, HEAD_DIM, NUM_BLOCKS = 8, 2, 12, 6
TABLE = [4, 1, 5, 2]
LENGTH = 27  # of a prompt in TABLE's blocks, the last one partial

Write = Callable[[LayerCache, Tensor, Tensor, Tensor], None]


def compiled_write(layer: LayerCache, slots: Tensor, k: Tensor, v: Tensor) -> None:
    loaded = kernels.load()
    if loaded is None:
        pytest.skip("no C compiler on this machine, or BATON_KERNELS=off")
    loaded.write_kv(layer, slots, k, v)


WRITES: dict[str, Write] = {"compiled": compiled_write, "torch": LayerCache.write}


@pytest.fixture(params=WRITES)
def write(request: pytest.FixtureRequest) -> Write:
    return WRITES[request.param]


def stale_cache(dtype: str) -> KvCache:
    """Whatever was there before: scales that are NaN, values that are large."""
    layout = KvCacheLayout(1, NUM_HEADS, BLOCK_SIZE, HEAD_DIM, dtype)
    buffer = torch.full((layout.size_bytes(NUM_BLOCKS),), 0xFF, dtype=torch.uint8)
    return KvCache(layout, NUM_BLOCKS, buffer=buffer)


def write_prompt(write: Write, dtype: str, kv: Tensor, cuts: Sequence[int] = ()) -> LayerCache:
    """The layer after tokens [0, len(kv)) were written into TABLE's blocks, in chunks that end at `cuts`."""
    (layer,) = stale_cache(dtype).layers
    slots = torch.tensor(
        [TABLE[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for at in range(len(kv))]
    )
    for begin, end in pairwise([0, *sorted(cuts), len(kv)]):
        part = slice(begin, end)
        write(layer, slots[part], kv[part, 0], kv[part, 1])
    return layer


def content(layer: LayerCache, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Bytes [num_tokens, 2, heads, head_dim] and scales of TABLE's blocks, as far as they are written."""
    assert layer.scales is not None
    raw = layer.values.view(torch.uint8)[TABLE].permute(0, 3, 1, 2, 4).flatten(0, 1)
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    return raw[:num_tokens], layer.scales[TABLE[:num_blocks]]


def read(layer: LayerCache, num_tokens: int) -> Tensor:
    floats = layer.read(torch.tensor(TABLE), torch.float32)
    return floats.permute(0, 3, 1, 2, 4).flatten(0, 1)[:num_tokens]


def random_kv(seed: int, growth: float = 1.0) -> Tensor:
    """[LENGTH, 2, heads, head_dim]; each token `growth` times as large as the one before, on average."""
    generator = torch.Generator().manual_seed(seed)
    shape = (LENGTH, 2, NUM_HEADS, HEAD_DIM)
    sizes = growth ** torch.arange(float(LENGTH))
    heads = torch.randn(1, 2, NUM_HEADS, 1, generator=generator).exp()
    return torch.randn(shape, generator=generator) * sizes[:, None, None, None] * heads


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(QUANTIZED),
    seed=st.integers(0, 1000),
    growth=st.sampled_from([1.0, 1.5, 8.0, 0.5, 20.0]),
    cuts=st.lists(st.integers(1, LENGTH - 1), unique=True),
)
def test_what_a_block_holds_does_not_depend_on_chunks(
    write: Write, dtype: str, seed: int, growth: float, cuts: list[int]
) -> None:
    """Also where every token makes the scale larger and the values before it are requantized."""
    kv = random_kv(seed, growth)
    whole = content(write_prompt(write, dtype, kv), LENGTH)
    in_parts = content(write_prompt(write, dtype, kv, cuts), LENGTH)
    assert torch.equal(in_parts[0], whole[0])
    assert torch.equal(in_parts[1], whole[1])


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("growth", [1.0, 3.0, 0.1])
def test_kernel_and_torch_write_the_same_bytes(dtype: str, growth: float) -> None:
    for seed in range(20):
        kv = random_kv(seed, growth)
        compiled, by_torch = (
            content(write_prompt(write, dtype, kv, cuts=[1, 2, 9, 20]), LENGTH)
            for write in WRITES.values()
        )
        assert torch.equal(compiled[0], by_torch[0])
        assert torch.equal(compiled[1], by_torch[1])


def largest_in_block(kv: Tensor) -> Tensor:
    """Per token the largest magnitude in its block, of its head and part [LENGTH, 2, heads, 1]."""
    blocks = kv.abs().amax(-1, keepdim=True).split(BLOCK_SIZE)
    return torch.cat([block.amax(0, keepdim=True).expand_as(block) for block in blocks])


@pytest.mark.parametrize("growth", [1.0, 2.0])
def test_int8_errs_by_a_128th_of_the_largest_at_most(write: Write, growth: float) -> None:
    for seed in range(20):
        kv = random_kv(seed, growth)
        error = (read(write_prompt(write, "int8", kv, cuts=range(1, LENGTH)), LENGTH) - kv).abs()
        assert (error <= largest_in_block(kv) / 128).all()
        assert error.max() > 0


@pytest.mark.parametrize("growth", [1.0, 2.0])
def test_fp8_errs_by_a_16th_at_most(write: Write, growth: float) -> None:
    """Of the value itself; what is thousands of times smaller than the largest is 0."""
    for seed in range(20):
        kv = random_kv(seed, growth)
        error = (read(write_prompt(write, "fp8", kv, cuts=range(1, LENGTH)), LENGTH) - kv).abs()
        assert (error <= torch.maximum(kv.abs() / 16, largest_in_block(kv) / 8192)).all()
        assert error.max() > 0


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_zeros_and_extremes_are_held(write: Write, dtype: str) -> None:
    kv = torch.zeros(LENGTH, 2, NUM_HEADS, HEAD_DIM)
    kv[9] = 1.9 * 2.0**125
    kv[17] = torch.finfo(torch.float32).tiny
    found = read(write_prompt(write, dtype, kv), LENGTH)
    assert found[:8].abs().max() < 1e-29
    torch.testing.assert_close(found[9], kv[9], rtol=1 / 16, atol=0)
    assert found[16:24].abs().max() < 1e-29


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf, 2.0**126], ids=str)
def test_a_value_that_is_no_number_is_not_hidden(write: Write, dtype: str, wrong: float) -> None:
    """Its block, head and part read as NaN until the block is begun anew; nothing else does."""
    kv = random_kv(1)
    kv[10, 0, 1, 5] = wrong
    layer = write_prompt(write, dtype, kv, cuts=[12])
    unread = torch.isnan(read(layer, LENGTH))
    expected = torch.zeros_like(unread)
    expected[8:16, 0, 1] = True
    assert torch.equal(unread, expected)
    slots = torch.arange(BLOCK_SIZE) + TABLE[1] * BLOCK_SIZE
    write(layer, slots, torch.ones(8, NUM_HEADS, HEAD_DIM), torch.ones(8, NUM_HEADS, HEAD_DIM))
    torch.testing.assert_close(
        read(layer, 16)[8:], torch.ones(8, 2, NUM_HEADS, HEAD_DIM), rtol=0, atol=1 / 64
    )


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("window", [0, 10])
def test_kernel_and_torch_attend_alike(dtype: str, window: int) -> None:
    loaded = kernels.load()
    if loaded is None:
        pytest.skip("no C compiler on this machine, or BATON_KERNELS=off")
    layer = write_prompt(LayerCache.write, dtype, random_kv(3, growth=1.1))
    spec = AttentionSpec(6, NUM_HEADS, HEAD_DIM, HEAD_DIM**-0.5, window)
    generator = torch.Generator().manual_seed(5)
    for num_rows in (1, 5, LENGTH):
        batch = batch_of(num_rows)
        q = torch.randn(num_rows, 6, HEAD_DIM, generator=generator)
        compiled = CompiledAttention(loaded).attend(layer, batch, q, spec)
        by_torch = TorchAttention().attend(layer, batch, q, spec)
        largest = float(by_torch.abs().max())
        torch.testing.assert_close(compiled, by_torch, rtol=0, atol=1e-5 * largest)


def batch_of(num_rows: int) -> AttentionBatch:
    """The last rows of the prompt in TABLE."""
    limits = StepLimits(10, 100, NUM_BLOCKS, BLOCK_SIZE, torch.device("cpu"))
    piece = Slice([1] * num_rows, LENGTH - num_rows, TABLE)
    return build_inputs([piece], limits).attention


@pytest.mark.parametrize(("dtype", "tolerance"), [("int8", 0.03), ("fp8", 0.06)])
def test_logits_are_close_to_those_over_fp32(
    checkpoint: Callable[..., Path], backend: None, dtype: str, tolerance: float
) -> None:
    folder, prompt = checkpoint("llama"), prompt_tokens(100)
    exact, quantized, in_chunks = (
        driver.prefill_logits(prompt, driver.table(100), cuts)
        for driver, cuts in (
            (Driver(folder, dtype="fp32"), ()),
            (Driver(folder, dtype="fp32", kv_dtype=dtype), ()),
            (Driver(folder, dtype="fp32", kv_dtype=dtype), range(1, 100, 3)),
        )
    )
    assert 0 < (exact - quantized).norm() / exact.norm() < tolerance
    assert (exact - in_chunks).norm() / exact.norm() < tolerance


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_kv_that_is_no_number_fails_its_request(
    checkpoint: Callable[..., Path], backend: None, dtype: str
) -> None:
    driver = Driver(checkpoint("llama"), dtype="fp32", kv_dtype=dtype)
    prompt, tables = prompt_tokens(30), [driver.table(40), driver.table(40)]
    driver.run(*(Slice(prompt, 0, table) for table in tables))
    scales = driver.runner.kv_cache.layers[1].scales
    assert scales is not None
    scales[tables[0][0]] = torch.nan
    output = driver.run(
        *(Slice([7], 30, table, draws=(handle,)) for handle, table in enumerate(tables)),
        added=[NewSample(handle, 0, GREEDY, [*prompt, 7], ()) for handle in range(2)],
    )
    assert [handle for handle, _ in output.failed] == [0]
    assert [drawn.handle for drawn in output.drawn] == [1]


def test_values_must_leave_scales_aligned() -> None:
    with pytest.raises(ConfigError) as refused:
        KvCacheLayout(1, 1, block_size=5, head_dim=13, dtype="int8")
    assert refused.value.field == "block_size"
