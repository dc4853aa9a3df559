"""What a checkpoint's `config.json` says about its decoder, checked. Knows no torch and no weights.

The four families are one dense decoder (RMSNorm, rotary embedding, grouped-query attention, SiLU-gated
MLP) that differ in a few fields; an architecture that is not listed is refused, never guessed.
Field names and defaults are those of transformers 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from engine.models.json_fields import JsonFields, read_json

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
RopeType = Literal["default", "linear", "llama3", "yarn"]

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions become rotation angles; the fields after `factor` belong to llama3 and yarn."""

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


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One dense decoder. `sliding_windows`: per layer, how many positions a token sees; 0 is all."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope: RopeConfig
    sliding_windows: tuple[int, ...]
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: str = "fp32"
    eos_token_ids: tuple[int, ...] = ()

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


def read_model_config(folder: Path) -> ModelConfig:
    """Reads `config.json` of a Hugging Face checkpoint folder."""
    path = folder / "config.json"
    fields = JsonFields(path, read_json(path))
    family = _family(fields)
    _refuse_unsupported(fields)
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", _default_kv_heads(family, num_heads))
    if num_heads % num_kv_heads:
        raise fields.fail(
            "num_key_value_heads", f"{num_kv_heads} does not divide the {num_heads} attention heads"
        )
    hidden_size = fields.integer("hidden_size")
    head_dim = fields.integer("head_dim", 128 if family == "qwen3" else hidden_size // num_heads)
    if head_dim % 2:
        raise fields.fail("head_dim", f"must be even for the rotary embedding, found {head_dim}")
    num_layers = fields.integer("num_hidden_layers")
    max_positions = fields.integer("max_position_embeddings")
    attention_bias = family in ("llama", "qwen3") and fields.boolean("attention_bias", False)
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        rope=_rope(fields, max_positions),
        sliding_windows=_sliding_windows(fields, family, num_layers),
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
        qkv_bias=attention_bias or family == "qwen2",
        output_bias=attention_bias,
        mlp_bias=family == "llama" and fields.boolean("mlp_bias", False),
        qk_norm=family == "qwen3",
        dtype=_dtype(fields),
        eos_token_ids=fields.token_ids("eos_token_id"),
    )


def _family(fields: JsonFields) -> Family:
    names = fields.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in FAMILIES:
        raise fields.fail("architectures", f"must be one of {', '.join(FAMILIES)}, found {names!r}")
    return FAMILIES[names[0]]


def _refuse_unsupported(fields: JsonFields) -> None:
    if fields.has("quantization_config"):
        raise fields.fail("quantization_config", "quantized checkpoints are not supported")
    activation = fields.text("hidden_act", "silu")
    if activation != "silu":
        raise fields.fail("hidden_act", f"only 'silu' is supported, found {activation!r}")


def _default_kv_heads(family: Family, num_heads: int) -> int:
    """What transformers assumes where the field is absent; null means as many as query heads."""
    return {"llama": num_heads, "mistral": 8, "qwen2": 32, "qwen3": 32}[family]


def _dtype(fields: JsonFields) -> str:
    name = fields.text("dtype", fields.get("torch_dtype", "float32")).removeprefix("torch.")
    if name not in DTYPES:
        raise fields.fail("dtype", f"must be one of {', '.join(DTYPES)}, found {name!r}")
    return DTYPES[name]


def _rope(fields: JsonFields, max_positions: int) -> RopeConfig:
    """transformers 5 keeps everything in `rope_parameters`, 4 splits `rope_theta` and `rope_scaling`."""
    rope = fields.object("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
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


def _sliding_windows(fields: JsonFields, family: Family, num_layers: int) -> tuple[int, ...]:
    """Mistral slides in every layer; Qwen only where `use_sliding_window` and the layer's type say so."""
    if family == "llama":
        return (0,) * num_layers
    if family == "mistral":
        # Present as null means no window; absent means what transformers assumes.
        absent = "sliding_window" not in fields.values
        window = 4096 if absent else fields.integer("sliding_window", 0, minimum=0)
        return (window,) * num_layers
    if not fields.boolean("use_sliding_window", False):
        return (0,) * num_layers
    window = fields.integer("sliding_window", 4096)
    first = fields.integer("max_window_layers", 28, minimum=0)
    assumed = ["full_attention"] * first + ["sliding_attention"] * num_layers
    types = fields.get("layer_types", assumed[:num_layers])
    known = {"full_attention": 0, "sliding_attention": window}
    if not isinstance(types, list) or len(types) != num_layers or not set(types) <= known.keys():
        raise fields.fail(
            "layer_types", f"must name full_attention or sliding_attention {num_layers} times"
        )
    return tuple(known[kind] for kind in types)
