"""Llama (arXiv 2407.21783), and the many models that say they are one."""

from __future__ import annotations

from baton.engine.models import dense
from baton.engine.models.dense import DenseConfig, DenseTraits, read_dense
from baton.engine.models.family import Family
from baton.engine.models.json_fields import JsonFields


def _read(fields: JsonFields) -> DenseConfig:
    attention_bias = fields.boolean("attention_bias", False)
    traits = DenseTraits(
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=fields.boolean("mlp_bias", False),
    )
    return read_dense(fields, traits, windows=(0,) * dense.num_layers(fields))


FAMILY = Family("LlamaForCausalLM", _read, dense.tensors, dense.ignored, dense.build)
