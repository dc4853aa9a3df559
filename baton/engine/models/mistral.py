"""Mistral (arXiv 2310.06825): a sliding window in every layer, or in none."""

from __future__ import annotations

from baton.engine.models import dense
from baton.engine.models.dense import DenseConfig, DenseTraits, read_dense
from baton.engine.models.family import Family
from baton.engine.models.json_fields import JsonFields


def _read(fields: JsonFields) -> DenseConfig:
    # Present as null means no window; absent means what transformers assumes.
    absent = "sliding_window" not in fields.values
    window = 4096 if absent else fields.integer("sliding_window", 0, minimum=0)
    return read_dense(
        fields, DenseTraits(num_kv_heads=8), windows=(window,) * dense.num_layers(fields)
    )


FAMILY = Family("MistralForCausalLM", _read, dense.tensors, dense.ignored, dense.build)
