"""Rotary position embedding: the cos and sin of every position's angles, scaled as the model asks.

Sources: RoFormer (arXiv 2104.09864); linear interpolation (arXiv 2306.15595); the Llama 3.1 report
(arXiv 2407.21783); YaRN (arXiv 2309.00071).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from baton.engine.models.rope_config import RopeConfig


def rope_tables(rope: RopeConfig, head_dim: int, num_positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each fp32 [num_positions, head_dim / 2], the first and second half rotating alike."""
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, _inverse_frequencies(rope, head_dim))
    scale = _attention_factor(rope)
    return angles.cos() * scale, angles.sin() * scale


def _inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """fp32 [head_dim / 2]: the angle by which one position turns each pair."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.rope_type == "linear":
        return frequencies / rope.factor
    if rope.rope_type == "llama3":
        return _llama3(rope, frequencies)
    if rope.rope_type == "yarn":
        return _yarn(rope, frequencies, head_dim)
    return frequencies


def _llama3(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between are blended."""
    turns = rope.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = rope.low_freq_factor, rope.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / rope.factor + kept * frequencies


def _yarn(rope: RopeConfig, frequencies: Tensor, head_dim: int) -> Tensor:
    """Pairs that turn more than `beta_fast` times are kept, fewer than `beta_slow` are stretched."""

    def pair_that_turns(times: float) -> float:
        length = rope.original_max_position_embeddings / (times * 2 * math.pi)
        return head_dim * math.log(length) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    pairs = torch.arange(head_dim // 2, dtype=torch.float32)
    stretched = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
    return (1 - stretched) * frequencies + stretched * frequencies / rope.factor


def _attention_factor(rope: RopeConfig) -> float:
    """YaRN sharpens attention as the context grows."""
    if rope.rope_type != "yarn":
        return 1.0
    if rope.attention_factor:
        return rope.attention_factor
    return 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
