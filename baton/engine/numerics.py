"""Chooses, once at load, how an engine computes: dtypes, linears, row operations, attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baton.engine.attention.base import AttentionBackend
from baton.engine.attention.compiled import CompiledAttention
from baton.engine.attention.sdpa import TorchAttention
from baton.engine.config import EngineConfig
from baton.engine.kernels import load as load_kernels
from baton.engine.kv_cache import KV_DTYPES, QUANTIZED
from baton.engine.linears import PackedFp16Linear, PlainLinear, TiledLinear
from baton.engine.models.config import ModelConfig
from baton.engine.models.loader import Numerics
from baton.engine.row_ops import CompiledRowOps, RowByRow, RowOps, TorchRowOps
from baton.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Backends:
    numerics: Numerics
    attention: AttentionBackend
    kv_dtype: str
    description: str


def choose_backends(config: EngineConfig, model_config: ModelConfig) -> Backends:
    device = _device(config.device)
    dtype = _dtype(config, device)
    kv_dtype = _kv_dtype(config, device, dtype)
    kernels = load_kernels() if device.type == "cpu" else None
    ops: RowOps
    attention: AttentionBackend
    if kernels is not None and all(
        CompiledAttention.supports(spec) for spec in set(model_config.attention)
    ):
        attention = CompiledAttention(kernels)
        ops = CompiledRowOps(kernels)
    else:
        attention = TorchAttention(row_by_row=config.deterministic)
        ops = RowByRow(TorchRowOps()) if config.deterministic else TorchRowOps()
    if config.deterministic:
        numerics = Numerics(device, torch.float32, False, False, TiledLinear, ops)
    elif device.type == "cpu" and dtype == "fp16":
        numerics = Numerics(device, torch.float32, True, True, PackedFp16Linear, ops)
    else:
        is_fp16 = dtype == "fp16"
        numerics = Numerics(device, KV_DTYPES[dtype], False, is_fp16, PlainLinear, ops)
    description = f"{dtype} on {device}, {type(attention).__name__}"
    return Backends(numerics, attention, kv_dtype, description)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is no device: {error}", field="device") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"must be cpu or cuda, found {name!r}", field="device")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no CUDA device", field="device")
    return device


def _dtype(config: EngineConfig, device: torch.device) -> str:
    dtype = config.dtype
    if dtype == "auto":
        if config.deterministic:
            return "fp32"
        return "fp16" if device.type == "cpu" else "bf16"
    if config.deterministic and dtype != "fp32":
        raise ConfigError(f"deterministic needs fp32, found {dtype}", field="dtype")
    if device.type == "cpu" and dtype == "bf16":
        raise ConfigError("the CPU computes in fp32 or fp16, found bf16", field="dtype")
    return dtype


def _kv_dtype(config: EngineConfig, device: torch.device, dtype: str) -> str:
    if device.type == "cpu" and config.kv_dtype == "bf16":
        raise ConfigError("on the CPU KV is fp32, fp16, int8 or fp8, found bf16", field="kv_dtype")
    if config.deterministic and config.kv_dtype in QUANTIZED:
        raise ConfigError(
            f"deterministic needs KV that is not quantized, found {config.kv_dtype}: a scale is shared "
            "by tokens that come later",
            field="kv_dtype",
        )
    if config.kv_dtype != "auto":
        return config.kv_dtype
    # On the CPU fp16 KV is no faster (docs/decisions.md), and its rounding shows in the output.
    return "fp32" if device.type == "cpu" else dtype
