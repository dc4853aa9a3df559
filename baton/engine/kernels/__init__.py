"""The engine's own CPU kernels: plain C behind ctypes, which releases the GIL while they run.

`load()` gives them, or None where they cannot be built. Every method checks its tensors, so a wrong
call is an `Internal` error that names the argument, never a crash. Results of one row never depend on the
rows beside it, the chunking or the number of threads (attention.c says how). Knows no model.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from baton import native
from baton.engine import openmp
from baton.engine.kv_cache import LayerCache
from baton.engine.quantized_kv import SCALE_BYTES
from baton.errors import Internal

MAX_HEAD_DIM = 256
MAX_GROUP = 64  # query heads of one KV head

_CACHE_DTYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2, torch.float8_e4m3fn: 3}

_INT, _LONG, _FLOAT, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_CACHE = [_POINTER, _INT, _LONG, _LONG, _LONG, _LONG]  # cache, dtype, its four sizes
_ROWS = [_POINTER, _LONG]  # a tensor and the floats between its tokens
_SIGNATURES: dict[str, list[type]] = {
    "baton_write_kv": [*_CACHE, _POINTER, _LONG, *_ROWS, *_ROWS, _INT],
    "baton_attend": [
        *(*_ROWS, *_CACHE, _POINTER, _LONG, _POINTER, _POINTER),
        *(_LONG, _LONG, _LONG, _FLOAT, _LONG, _POINTER, _INT),
    ],
    "baton_rms_norm": [*_ROWS, _POINTER, _FLOAT, *_ROWS, _LONG, _LONG, _LONG, _INT],
    "baton_add_rms_norm": [*_ROWS, _POINTER, _POINTER, _FLOAT, *_ROWS, _LONG, _LONG, _INT],
    "baton_rope": [*_ROWS, *([_POINTER] * 3), *([_LONG] * 5), _INT],
    "baton_silu_mul": [*_ROWS, *_ROWS, _LONG, _LONG, _INT],
}
_WRONG_ATTEND = {
    1: "query_starts: does not ascend from 0 to the number of rows",
    2: "starts: negative, or past the end of block_tables",
    3: "block_tables: names a block outside the cache",
}


@functools.cache
def load() -> Kernels | None:
    """The kernels, built at the first call on a machine; None where that is impossible (logged)."""
    library = native.load(Path(__file__).parent)
    return None if library is None else Kernels(library)


class Kernels:
    """Shapes: `num_tokens` rows of all slices of a step, one after the other. Rows may be strided
    (slices of a fused projection); within a row elements are dense."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, arguments in _SIGNATURES.items():
            getattr(library, name).argtypes = arguments
        self._library = library
        self._share_threads()

    def _share_threads(self) -> None:
        """Work on torch's own threads (parallel.c says why), or else on the caller's alone."""
        use = self._library.baton_use_threads_of
        use.argtypes, use.restype = [_POINTER], None
        use(openmp.entry("GOMP_parallel"))

    def write_kv(self, layer_cache: LayerCache, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """`LayerCache.write`, of any dtype but bf16, on the CPU."""
        cache = _cache_arguments(layer_cache, "write_kv")
        num_tokens = slots.shape[0]
        shape = (num_tokens, layer_cache.num_kv_heads, layer_cache.values.shape[4])
        k_rows = _rows(k, shape, "write_kv.k")
        v_rows = _rows(v, shape, "write_kv.v")
        at = _dense(slots, torch.int64, (num_tokens,), "write_kv.slots")
        if self._library.baton_write_kv(
            *cache, at, num_tokens, *k_rows, *v_rows, torch.get_num_threads()
        ):
            raise Internal("a slot is outside the cache", field="write_kv.slots")

    def attend(
        self,
        q: Tensor,
        layer_cache: LayerCache,
        block_tables: Tensor,
        query_starts: Tensor,
        starts: Tensor,
        scale: float,
        sliding_window: int,
        out: Tensor,
    ) -> None:
        """Causal attention of `q` [num_tokens, num_heads, head_dim] over the paged cache, into `out`.

        `block_tables` int32 [num_slices, max_blocks]; slice s has rows [query_starts[s],
        query_starts[s + 1]), int32 [num_slices + 1], the first at position starts[s], int32
        [num_slices]. A row sees positions up to its own, only the last `sliding_window` if not 0;
        their KV must have been written, nothing else of the cache matters.
        """
        cache = _cache_arguments(layer_cache, "attend")
        num_tokens, num_heads, head_dim = out.shape
        num_slices, max_blocks = block_tables.shape
        num_kv_heads = layer_cache.num_kv_heads
        if head_dim != layer_cache.values.shape[4] or head_dim > MAX_HEAD_DIM:
            raise Internal(f"head_dim is {head_dim}", field="attend.out")
        if num_heads % num_kv_heads or num_heads > num_kv_heads * MAX_GROUP:
            raise Internal(f"{num_heads} heads for {num_kv_heads} KV heads", field="attend.out")
        if sliding_window < 0:
            raise Internal("is negative", field="attend.sliding_window")
        wrong = self._library.baton_attend(
            *_rows(q, (num_tokens, num_heads, head_dim), "attend.q"),
            *cache,
            _dense(block_tables, torch.int32, (num_slices, max_blocks), "attend.block_tables"),
            max_blocks,
            _dense(query_starts, torch.int32, (num_slices + 1,), "attend.query_starts"),
            _dense(starts, torch.int32, (num_slices,), "attend.starts"),
            num_slices,
            num_tokens,
            num_heads,
            scale,
            sliding_window,
            _dense(out, torch.float32, (num_tokens, num_heads, head_dim), "attend.out"),
            torch.get_num_threads(),
        )
        if wrong:
            raise Internal(_WRONG_ATTEND.get(wrong, "no memory"), field="attend")

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """out = x / sqrt(mean(x^2) + eps) * weight over the last dimension of `x` [num_tokens, dim]
        or [num_tokens, num_heads, dim]; `out` may be `x`."""
        num_tokens, *heads, dim = x.shape
        self._library.baton_rms_norm(
            *_rows(x, tuple(x.shape), "rms_norm.x"),
            _dense(weight, torch.float32, (dim,), "rms_norm.weight"),
            eps,
            *_rows(out, tuple(x.shape), "rms_norm.out"),
            num_tokens,
            heads[0] if heads else 1,
            dim,
            torch.get_num_threads(),
        )

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor
    ) -> None:
        """residual += x, then out = rms_norm(residual); all [num_tokens, dim]; `out` may be `x`."""
        num_tokens, dim = x.shape
        self._library.baton_add_rms_norm(
            *_rows(x, (num_tokens, dim), "add_rms_norm.x"),
            _dense(residual, torch.float32, (num_tokens, dim), "add_rms_norm.residual"),
            _dense(weight, torch.float32, (dim,), "add_rms_norm.weight"),
            eps,
            *_rows(out, (num_tokens, dim), "add_rms_norm.out"),
            num_tokens,
            dim,
            torch.get_num_threads(),
        )

    def rope(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Rotates `x` [num_tokens, num_heads, head_dim] in place: dimension i with i + rotary_dim / 2
        (Hugging Face's "rotate_half"), those from rotary_dim on stay.

        `positions` int64 [num_tokens]; `cos` and `sin` fp32 [max_positions, rotary_dim / 2].
        """
        num_tokens, num_heads, head_dim = x.shape
        max_positions, half = cos.shape
        if 2 * half > head_dim:
            raise Internal(f"rotates {2 * half} of {head_dim} dimensions", field="rope.cos")
        if self._library.baton_rope(
            *_rows(x, (num_tokens, num_heads, head_dim), "rope.x"),
            _dense(positions, torch.int64, (num_tokens,), "rope.positions"),
            _dense(cos, torch.float32, (max_positions, half), "rope.cos"),
            _dense(sin, torch.float32, (max_positions, half), "rope.sin"),
            max_positions,
            2 * half,
            num_tokens,
            num_heads,
            head_dim,
            torch.get_num_threads(),
        ):
            raise Internal(f"one is outside [0, {max_positions})", field="rope.positions")

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        """out [num_tokens, m] = silu(gate) * up, of `gate_up` [num_tokens, 2 * m]: gate, then up."""
        num_tokens, dim = out.shape
        self._library.baton_silu_mul(
            *_rows(gate_up, (num_tokens, 2 * dim), "silu_mul.gate_up"),
            *_rows(out, (num_tokens, dim), "silu_mul.out"),
            num_tokens,
            dim,
            torch.get_num_threads(),
        )


def _cache_arguments(cache: LayerCache, call: str) -> tuple[int, int, int, int, int, int]:
    values, scales = cache.values, cache.scales
    kind = _CACHE_DTYPES.get(values.dtype)
    if kind is None or values.ndim != 5 or values.shape[1] != 2 or not _has_dense_strips(cache):
        raise Internal(
            f"is {_describe(values)} with scales {None if scales is None else _describe(scales)}, not "
            "the strips of a cache in fp32, fp16, int8 or fp8 on the CPU",
            field=f"{call}.layer_cache",
        )
    num_blocks, _, num_kv_heads, block_size, head_dim = values.shape
    base = values if scales is None else scales
    return base.data_ptr(), kind, num_blocks, num_kv_heads, block_size, head_dim


def _has_dense_strips(cache: LayerCache) -> bool:
    """Whether strips (scale, values) lie one behind the other, scales where values are of one byte."""
    values, scales = cache.values, cache.scales
    if scales is None or not values.is_cpu:
        return values.itemsize > 1 and _is_dense_cpu(values)
    _, _, num_heads, block_size, head_dim = values.shape
    strip = SCALE_BYTES + block_size * head_dim
    places = (2 * num_heads * strip, num_heads * strip, strip)
    return (
        values.itemsize == 1
        and _lies(values, (*places, head_dim, 1))
        and scales.dtype == torch.float32
        and scales.shape == values.shape[:3]
        and _lies(scales, places)
        and values.data_ptr() == scales.data_ptr() + SCALE_BYTES
    )


def _lies(x: Tensor, strides_bytes: tuple[int, ...]) -> bool:
    """Whether `x` has these strides, wherever a stride matters."""
    strides = zip(x.shape, x.stride(), strides_bytes, strict=True)
    return all(size <= 1 or stride * x.itemsize == right for size, stride, right in strides)


def _rows(x: Tensor, shape: tuple[int, ...], name: str) -> tuple[int, int]:
    """Address and floats between tokens of an fp32 tensor whose rows may be apart."""
    ok = x.shape == shape and x.dtype is torch.float32 and x.is_cpu
    if ok and x.numel() and not x.is_contiguous():
        strides = x.stride()
        ok = strides[-1] == 1 and (x.ndim == 2 or x.shape[1] == 1 or strides[1] == x.shape[2])
    if not ok:
        raise Internal(f"is {_describe(x)}, not fp32 {shape} with dense rows", field=name)
    return x.data_ptr(), x.stride(0)


def _dense(x: Tensor, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> int:
    if x.dtype != dtype or x.shape != shape or not _is_dense_cpu(x):
        raise Internal(f"is {_describe(x)}, not a dense {dtype} {shape} on the CPU", field=name)
    return x.data_ptr()


def _is_dense_cpu(x: Tensor) -> bool:
    return x.is_contiguous() and x.is_cpu


def _describe(x: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape)} with strides {x.stride()} on {x.device}"
