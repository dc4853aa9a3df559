"""What a checkpoint's `config.json` says of any decoder, checked. Knows no torch and no weights.

Field names and defaults are those of transformers 4 and 5. What only some families have stands with
them (`dense.py` and the family's own file).
"""

from __future__ import annotations

from dataclasses import dataclass

from baton.engine.attention.spec import AttentionSpec
from baton.engine.models.json_fields import JsonFields

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One decoder, of whatever family. `attention`: one entry per layer; all layers' KV have one shape.
    `max_position_embeddings`: the longest context, also where its rotary embedding is what extends it."""

    architecture: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    attention: tuple[AttentionSpec, ...]
    dtype: str = "fp32"
    eos_token_ids: tuple[int, ...] = ()

    @property
    def num_layers(self) -> int:
        return len(self.attention)

    @property
    def num_kv_heads(self) -> int:
        return self.attention[0].num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.attention[0].head_dim


def read_dtype(fields: JsonFields) -> str:
    """The dtype in which the weights are stored, by our name."""
    name = fields.text("dtype", fields.get("torch_dtype", "float32")).removeprefix("torch.")
    if name not in DTYPES:
        raise fields.fail("dtype", f"must be one of {', '.join(DTYPES)}, found {name!r}")
    return DTYPES[name]


def refuse_quantized(fields: JsonFields) -> None:
    if fields.has("quantization_config"):
        raise fields.fail("quantization_config", "quantized checkpoints are not supported")
