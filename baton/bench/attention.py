"""Paged attention on the CPU against torch's, and against what this machine's memory and cores give.

    python -m baton.bench.attention [--threads N] [--pairs N] [--json]

Per case, in turn: the kernel, torch's SDPA over KV gathered from the same blocks (the gathering is part
of its cost, and is also shown alone), and the machine's limit, which is its read bandwidth for decode
and its best GEMM for prefill. Decode reads each KV byte once; prefill counts causal FLOPs. A case of another
dtype takes turns with the same case over fp32 KV, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from baton.bench.machine_limits import MachineLimits, seconds
from baton.bench.statistics import median, pairwise_ratio
from baton.engine.kernels import Kernels, load
from baton.engine.kv_cache import KvCache, KvCacheLayout


@dataclass(frozen=True, slots=True)
class Case:
    """`num_requests` prompts of `length` tokens, of which the last `num_new` are computed."""

    name: str
    num_requests: int
    length: int
    num_new: int
    num_heads: int = 14
    num_kv_heads: int = 2
    head_dim: int = 64
    dtype: str = "fp32"
    block_size: int = 64

    @property
    def layout(self) -> KvCacheLayout:
        return KvCacheLayout(1, self.num_kv_heads, self.block_size, self.head_dim, self.dtype)

    @property
    def kv_bytes(self) -> int:
        num_tokens = self.num_requests * self.length
        return num_tokens * self.layout.block_bytes // self.block_size

    @property
    def flops(self) -> int:
        seen = sum(range(self.length - self.num_new + 1, self.length + 1))
        return 4 * self.num_requests * self.num_heads * self.head_dim * seen


def cases() -> list[Case]:
    return [
        Case("decode 32 x 2048, fp32", 32, 2048, 1),
        Case("decode 32 x 2048, fp16", 32, 2048, 1, dtype="fp16"),
        Case("decode 32 x 2048, int8", 32, 2048, 1, dtype="int8"),
        Case("decode 32 x 2048, fp8", 32, 2048, 1, dtype="fp8"),
        Case("decode 1 x 2048, fp16", 1, 2048, 1, dtype="fp16"),
        Case("decode 1 x 2048, int8", 1, 2048, 1, dtype="int8"),
        Case("decode 8 x 2048, 12/4 heads, fp32", 8, 2048, 1, 12, 4),
        Case("decode 8 x 2048, 12/4 heads, fp16", 8, 2048, 1, 12, 4, dtype="fp16"),
        Case("decode 8 x 2048, 12/4 heads, int8", 8, 2048, 1, 12, 4, dtype="int8"),
        Case("decode 8 x 2048, 8/8 heads of 128, fp16", 8, 2048, 1, 8, 8, 128, "fp16"),
        Case("decode 8 x 2048, 8/8 heads of 128, int8", 8, 2048, 1, 8, 8, 128, "int8"),
        Case("decode 8 x 8192, fp32", 8, 8192, 1),
        Case("decode 8 x 8192, int8", 8, 8192, 1, dtype="int8"),
        Case("prefill 512, fp32", 1, 512, 512),
        Case("prefill 2048, fp32", 1, 2048, 2048),
        Case("prefill 2048, fp16", 1, 2048, 2048, dtype="fp16"),
        Case("prefill 2048, int8", 1, 2048, 2048, dtype="int8"),
        Case("prefill 256 after 2048, fp16", 1, 2304, 256, dtype="fp16"),
    ]


class Run:
    """The tensors of one case, with blocks in random order."""

    def __init__(self, case: Case, kernels: Kernels) -> None:
        self.case, self._kernels = case, kernels
        per_request = -(-case.length // case.block_size)
        num_blocks = case.num_requests * per_request
        num_rows = case.num_requests * case.num_new
        (self._cache,) = KvCache(case.layout, num_blocks).layers
        num_slots = num_blocks * case.block_size
        kv = torch.randn(2, num_slots, case.num_kv_heads, case.head_dim)
        kernels.write_kv(self._cache, torch.arange(num_slots), kv[0], kv[1])
        self._tables = torch.randperm(num_blocks).view(case.num_requests, -1).int()
        self._query_starts = torch.arange(case.num_requests + 1).int() * case.num_new
        self._starts = torch.full((case.num_requests,), case.length - case.num_new).int()
        self._q = torch.randn(num_rows, case.num_heads, case.head_dim)
        self._out = torch.empty_like(self._q)

    def attend(self) -> Tensor:
        self._kernels.attend(
            self._q,
            self._cache,
            self._tables,
            self._query_starts,
            self._starts,
            self.case.head_dim**-0.5,
            0,
            self._out,
        )
        return self._out

    def gather(self) -> Tensor:
        """[2, num_requests, num_kv_heads, length, head_dim], in fp32."""
        blocks = self._cache.read(self._tables.long(), torch.float32)
        # [requests, blocks, 2, heads, size, dim]
        return blocks.permute(2, 0, 3, 1, 4, 5).flatten(3, 4)[..., : self.case.length, :]

    def sdpa(self) -> Tensor:
        """Query heads are grouped by their KV head, which suits SDPA best for decode."""
        case = self.case
        keys, values = self.gather()
        q = self._q.view(case.num_requests, case.num_new, case.num_heads, case.head_dim)
        if case.num_new == 1:
            grouped = q.view(case.num_requests, case.num_kv_heads, -1, case.head_dim)
            return scaled_dot_product_attention(grouped, keys, values).view_as(self._q)
        mask = None
        if case.num_new < case.length:
            mask = torch.ones(case.num_new, case.length, dtype=torch.bool)
            mask = mask.tril(case.length - case.num_new)
        out = scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, mask, is_causal=mask is None, enable_gqa=True
        )
        return out.transpose(1, 2).reshape(self._q.shape)


def measure(run: Run, fp32: Run | None, limits: MachineLimits, num_pairs: int) -> dict[str, Any]:
    """`fp32`: the same case over fp32 KV, where it is another."""
    case = run.case
    decode = case.num_new == 1
    torch.testing.assert_close(run.attend(), run.sdpa(), rtol=1e-4, atol=1e-5)
    ours, theirs, gathering, limit, wide = [], [], [], [], []
    for _ in range(num_pairs):
        ours.append(seconds(run.attend))
        wide.append(seconds(fp32.attend) if fp32 else ours[-1])
        theirs.append(seconds(run.sdpa))
        gathering.append(seconds(run.gather))
        limit.append(limits.read_rate() if decode else limits.gemm_rate())
    work = case.kv_bytes if decode else case.flops
    rates = [work / t for t in ours]
    over_fp32 = pairwise_ratio(wide, ours)
    speedup, share = pairwise_ratio(theirs, ours), pairwise_ratio(rates, limit)
    return {
        "case": case.name,
        "kind": "decode" if decode else "prefill",
        "ms": median(ours) * 1e3,
        "torch_ms": median(theirs) * 1e3,
        "torch_gather_ms": median(gathering) * 1e3,
        "speedup": speedup.median,
        "ci95": speedup.ci95,
        "over_fp32": over_fp32.median,
        "over_fp32_ci95": over_fp32.ci95,
        "rate": median(rates) / 1e9,
        "unit": "GB/s" if decode else "GFLOP/s",
        "limit": median(limit) / 1e9,
        "share_of_limit": share.median,
        "share_ci95": share.ci95,
        "n": speedup.n,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=15, help="measurements of each side")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    arguments = parser.parse_args()
    kernels = load()
    if kernels is None:
        sys.exit("the kernels cannot be built here")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    limits, rows = MachineLimits(), []
    print(
        f"{'case':42} {'ms':>8} {'torch':>8} {'faster':>7} {'over fp32':>18} "
        f"{'rate':>8} {'limit':>8} {'share':>6}"
    )
    for case in cases():
        fp32 = replace(case, dtype="fp32")
        beside = Run(fp32, kernels) if case != fp32 else None
        row = measure(Run(case, kernels), beside, limits, arguments.pairs)
        rows.append(row)
        low, high = row["over_fp32_ci95"]
        over_fp32 = f"{row['over_fp32']:.2f}x ({low:.2f}-{high:.2f})" if beside else ""
        print(
            "{case:42} {ms:8.3f} {torch_ms:8.3f} {speedup:6.1f}x {over_fp32:>18} {rate:8.1f} {limit:8.1f} "
            "{share_of_limit:6.0%} {unit}".format(**{**row, "over_fp32": over_fp32})
        )
    if arguments.json:
        print(json.dumps({"threads": arguments.threads, "rows": rows}))


if __name__ == "__main__":
    main()
