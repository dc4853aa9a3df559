"""Qwen3, the dense ones (arXiv 2505.09388): every head's query and key are normed."""

from __future__ import annotations

from baton.engine.models import dense
from baton.engine.models.dense import DenseConfig, DenseTraits, read_dense
from baton.engine.models.family import Family
from baton.engine.models.json_fields import JsonFields
from baton.engine.models.qwen2 import sliding_windows


def _read(fields: JsonFields) -> DenseConfig:
    attention_bias = fields.boolean("attention_bias", False)
    traits = DenseTraits(
        num_kv_heads=32,
        head_dim=128,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        qk_norm=True,
    )
    return read_dense(fields, traits, sliding_windows(fields))


FAMILY = Family("Qwen3ForCausalLM", _read, dense.tensors, dense.ignored, dense.build)
