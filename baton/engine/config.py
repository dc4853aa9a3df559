"""What an engine is told at start-up. What it discovers (the number of blocks) is a return value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LoadFormat = Literal["auto", "dummy"]
Dtype = Literal["auto", "fp32", "fp16", "bf16"]
KvDtype = Literal["auto", "fp32", "fp16", "bf16", "int8", "fp8"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """`model`: a Hugging Face checkpoint folder, or with `load_format="dummy"` also the name of a shape.

    `dtype` of the weights and `kv_dtype` of the cache: "auto" is fp16 weights with fp32 KV on the
    CPU, bf16 on CUDA, fp32 when deterministic. int8 and fp8 KV have a scale per block and head, and are
    not for the deterministic mode (baton/engine/quantized_kv.py). `deterministic`: outputs bit-exact whatever
    the batch, the chunking and the cache (fp32, kernel-invariant shapes). `max_model_len` 0: the model's
    own. `num_blocks` 0: as many as `kv_cache_bytes` hold.
    """

    model: str | Path
    load_format: LoadFormat = "auto"
    device: str = "cpu"
    dtype: Dtype = "auto"
    kv_dtype: KvDtype = "auto"
    deterministic: bool = False
    block_size: int = 64
    num_blocks: int = 0
    kv_cache_bytes: int = 1 << 30
    max_model_len: int = 0
    num_threads: int = 0  # 0: torch's own choice
