"""How positions become rotation angles, as `config.json` says it. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from baton.engine.models.json_fields import JsonFields

RopeType = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """The fields after `factor` belong to llama3 and yarn."""

    theta: float = 10000.0
    rope_type: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0  # 0: derived from `factor`
    truncate: bool = True


def num_positions(rope: RopeConfig, max_positions: int) -> int:
    """How long a context may be: linear interpolation and YaRN extend `factor` times the length that the
    model was trained on, which `max_position_embeddings` may or may not count already."""
    if rope.rope_type not in ("linear", "yarn"):
        return max_positions
    return max(max_positions, int(rope.original_max_position_embeddings * rope.factor))


def read_rope(fields: JsonFields, max_positions: int) -> RopeConfig:
    """transformers 5 keeps everything in `rope_parameters`, 4 splits `rope_theta` and `rope_scaling`."""
    name = "rope_parameters" if fields.has("rope_parameters") else "rope_scaling"
    rope = _of_all_layers(fields.object(name))
    theta = rope.positive("rope_theta", fields.positive("rope_theta", 10000.0))
    if rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0)) != 1:
        raise fields.fail("partial_rotary_factor", "only 1.0 is supported")
    rope_type = rope.text("rope_type", rope.text("type", "default"))
    if rope_type == "default":
        return RopeConfig(theta)
    if rope_type not in ("linear", "llama3", "yarn"):
        raise rope.fail(
            "rope_type", f"must be default, linear, llama3 or yarn, found {rope_type!r}"
        )
    if rope.has("mscale") or rope.has("mscale_all_dim"):
        raise rope.fail("mscale", "is not supported")
    low, high = rope.positive("low_freq_factor", 1.0), rope.positive("high_freq_factor", 4.0)
    if rope_type == "llama3" and low >= high:
        raise rope.fail("low_freq_factor", f"must be below high_freq_factor, found {low}")
    return RopeConfig(
        theta=theta,
        rope_type=cast(RopeType, rope_type),
        factor=rope.positive("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=rope.integer(
            "original_max_position_embeddings", max_positions
        ),
        beta_fast=rope.positive("beta_fast", 32.0),
        beta_slow=rope.positive("beta_slow", 1.0),
        attention_factor=rope.number("attention_factor", 0.0),
        truncate=rope.boolean("truncate", True),
    )


def _of_all_layers(rope: JsonFields) -> JsonFields:
    """transformers 5 may have an object for each type of layer. The layers of these families rotate alike."""
    nested = [name for name, value in rope.values.items() if isinstance(value, dict)]
    if not nested:
        return rope
    first = rope.object(nested[0])
    for name in rope.values.keys() - {nested[0]}:
        if rope.values[name] != first.values:
            raise rope.fail(name, f"differs from {nested[0]}: all layers must rotate alike")
    return first
