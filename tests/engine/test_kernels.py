"""The CPU kernels besides attention: right against float64, and each row alone in what it yields."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from baton.engine import kernels
from baton.engine.kv_cache import LayerCache
from baton.errors import Internal


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


@pytest.mark.parametrize("slot", [-1, 6 * 16])
def test_slot_outside_the_cache_writes_nothing(native: kernels.Kernels, slot: int) -> None:
    cache = torch.zeros(6, 2, 2, 16, 32)
    k = torch.ones(2, 2, 32)
    with pytest.raises(Internal, match="slots"):
        native.write_kv(LayerCache(cache), torch.tensor([0, slot]), k, k)
    assert not cache.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [13, 64])
def test_write_kv_puts_rows_at_their_slots(
    native: kernels.Kernels, dtype: torch.dtype, head_dim: int
) -> None:
    cache = torch.zeros(4, 2, 3, 8, head_dim, dtype=dtype)
    kv = torch.randn(300, 6, head_dim)[::20]  # rows far apart
    k, v = kv[:, :3], kv[:, 3:]
    slots = torch.randperm(32)[:15]
    native.write_kv(LayerCache(cache), slots, k, v)
    right = torch.zeros_like(cache)
    right[slots // 8, 0, :, slots % 8] = k.to(dtype)
    right[slots // 8, 1, :, slots % 8] = v.to(dtype)
    assert torch.equal(cache, right)


@pytest.mark.parametrize("dim", [1, 13, 64, 80, 896, 1001])
def test_rms_norm_equals_float64(native: kernels.Kernels, dim: int) -> None:
    x, weight = torch.randn(37, dim + 5)[:, :dim] * 3, torch.randn(dim)
    out = torch.empty(37, dim)
    native.rms_norm(x, weight, 1e-6, out)
    wide = x.double()
    right = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    np.testing.assert_allclose(out, right, rtol=2e-6, atol=1e-7)


def test_rms_norm_of_heads_within_a_fused_projection(native: kernels.Kernels) -> None:
    fused, weight = torch.randn(20, 12, 64), torch.randn(64)
    before = fused.clone()
    heads = fused[:, 2:7]
    native.rms_norm(heads, weight, 1e-6, heads)
    right = torch.nn.functional.rms_norm(before[:, 2:7], (64,), weight, 1e-6)
    np.testing.assert_allclose(fused[:, 2:7], right, rtol=2e-6, atol=1e-6)
    assert torch.equal(fused[:, :2], before[:, :2])
    assert torch.equal(fused[:, 7:], before[:, 7:])


def test_add_rms_norm_adds_then_normalizes(native: kernels.Kernels) -> None:
    x, residual, weight = torch.randn(200, 896), torch.randn(200, 896), torch.randn(896)
    total, out, right = x + residual, torch.empty(200, 896), torch.empty(200, 896)
    native.add_rms_norm(x, residual, weight, 1e-5, out)
    assert torch.equal(residual, total)
    native.rms_norm(total, weight, 1e-5, right)
    assert torch.equal(out, right)


@pytest.mark.parametrize("rotary_dim", [64, 32, 6])
def test_rope_rotates_halves(native: kernels.Kernels, rotary_dim: int) -> None:
    half = rotary_dim // 2
    angles = torch.outer(torch.arange(500.0), 10000.0 ** -(torch.arange(half) / half))
    x = torch.randn(40, 8, 64)
    view = x[:, 1:5]
    positions = torch.randint(0, 500, (40,))
    a, b = view[..., :half].double(), view[..., half:rotary_dim].double()
    cos, sin = angles.cos()[positions, None].double(), angles.sin()[positions, None].double()
    rest, beside = view[..., rotary_dim:].clone(), x[:, 5:].clone()
    native.rope(view, positions, angles.cos(), angles.sin())
    right = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    np.testing.assert_allclose(view[..., :rotary_dim], right, rtol=1e-5, atol=1e-6)
    assert torch.equal(view[..., rotary_dim:], rest)
    assert torch.equal(x[:, 5:], beside)


@pytest.mark.parametrize("position", [-1, 500])
def test_rope_refuses_positions_outside_its_table(native: kernels.Kernels, position: int) -> None:
    x, table = torch.ones(2, 1, 8), torch.zeros(500, 4)
    with pytest.raises(Internal, match="positions"):
        native.rope(x, torch.tensor([0, position]), table, table)
    assert (x == 1).all()


@pytest.mark.parametrize("dim", [1, 15, 16, 1001])
def test_silu_mul_equals_float64(native: kernels.Kernels, dim: int) -> None:
    gate_up = torch.randn(33, 2 * dim) * 30
    out = torch.empty(33, dim)
    native.silu_mul(gate_up, out)
    gate, up = gate_up.double().chunk(2, dim=-1)
    np.testing.assert_allclose(out, gate * torch.sigmoid(gate) * up, rtol=3e-6, atol=1e-30)


def test_silu_mul_of_extreme_values(native: kernels.Kernels) -> None:
    gate = torch.tensor([-1e30, -100.0, -0.0, 0.0, 100.0, 1e30, torch.inf, torch.nan])
    out = torch.empty(1, 8)
    native.silu_mul(torch.cat([gate, torch.ones(8)])[None], out)
    right = torch.nn.functional.silu(gate)
    np.testing.assert_allclose(out[0], right, rtol=1e-6, atol=1e-30)


def test_rows_do_not_depend_on_the_batch_or_the_threads(native: kernels.Kernels) -> None:
    x, weight = torch.randn(512, 2 * 896), torch.randn(896)
    table = torch.randn(512, 32)
    results = []
    for num_threads, rows in ((1, 512), (2, 512), (1, 1), (1, 7)):
        torch.set_num_threads(num_threads)
        gated, turned = torch.empty(512, 896), x[:, :896].reshape(512, 14, 64).clone()
        normed = torch.empty(512, 896)
        for at in range(0, 512, rows):
            part = slice(at, at + rows)
            native.silu_mul(x[part], gated[part])
            native.rms_norm(x[part, :896], weight, 1e-6, normed[part])
            native.rope(turned[part], torch.arange(512)[part], table, table)
        results.append(torch.cat([gated, normed, turned.view(512, 896)]))
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_wrong_row_arguments_are_errors(native: kernels.Kernels) -> None:
    x = torch.randn(4, 8)
    with pytest.raises(Internal, match=r"rms_norm\.weight"):
        native.rms_norm(x, torch.ones(7), 1e-6, x)
    with pytest.raises(Internal, match=r"rms_norm\.out"):
        native.rms_norm(x, torch.ones(8), 1e-6, torch.empty(3, 8))
    with pytest.raises(Internal, match=r"silu_mul\.gate_up"):
        native.silu_mul(x, torch.empty(4, 5))
    with pytest.raises(Internal, match=r"rope\.cos"):
        native.rope(x[:, None], torch.arange(4), torch.ones(4, 5), torch.ones(4, 5))
