"""Qwen2 and Qwen2.5 (arXiv 2407.10671): biases on queries, keys and values."""

from __future__ import annotations

from baton.engine.models import dense
from baton.engine.models.dense import DenseConfig, DenseTraits, read_dense
from baton.engine.models.family import Family
from baton.engine.models.json_fields import JsonFields


def _read(fields: JsonFields) -> DenseConfig:
    traits = DenseTraits(num_kv_heads=32, qkv_bias=True)
    return read_dense(fields, traits, sliding_windows(fields))


def sliding_windows(fields: JsonFields) -> tuple[int, ...]:
    """A layer slides only where `use_sliding_window` and its type say so; Qwen3 says it alike."""
    num_layers = dense.num_layers(fields)
    if not fields.boolean("use_sliding_window", False):
        return (0,) * num_layers
    if "sliding_window" in fields.values and not fields.has("sliding_window"):
        window = None  # null: no layer slides, and none may say that it does
    else:
        window = fields.integer("sliding_window", 4096)
    first = fields.integer("max_window_layers", 28, minimum=0)
    assumed = ["full_attention"] * first + ["sliding_attention"] * num_layers
    if window is None:
        assumed = ["full_attention"] * num_layers
    types = fields.get("layer_types", assumed[:num_layers])
    known = {"full_attention": 0} | ({"sliding_attention": window} if window else {})
    if not isinstance(types, list) or len(types) != num_layers or not set(types) <= known.keys():
        raise fields.fail(
            "layer_types", f"must name full_attention or sliding_attention {num_layers} times"
        )
    return tuple(known[kind] for kind in types)


FAMILY = Family("Qwen2ForCausalLM", _read, dense.tensors, dense.ignored, dense.build)
