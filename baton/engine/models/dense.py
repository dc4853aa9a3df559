"""The dense decoder that Llama, Mistral, Qwen2 and Qwen3 share: its configuration, the names of its
tensors, and how they become a `Decoder`.

RMSNorm, rotary embedding, grouped-query attention, SiLU-gated MLP. What a family has of its own is what
it passes to `read_dense`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baton.engine.attention.spec import AttentionSpec
from baton.engine.models.config import ModelConfig, read_dtype, refuse_quantized
from baton.engine.models.decoder import Attention, Decoder, Layer, Mlp, RmsNorm, Rotary
from baton.engine.models.json_fields import JsonFields
from baton.engine.models.loader import WeightLoader
from baton.engine.models.rope import rope_tables
from baton.engine.models.rope_config import RopeConfig, num_positions, read_rope


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseConfig(ModelConfig):
    intermediate_size: int
    rope: RopeConfig
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseTraits:
    """What tells one dense family from another. `num_kv_heads` and `head_dim` are what transformers
    assumes where the field is absent; None is as many as query heads, and hidden_size / num_heads."""

    num_kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


def read_dense(fields: JsonFields, traits: DenseTraits, windows: Sequence[int]) -> DenseConfig:
    """`windows`: the sliding window of each layer, 0 for none."""
    refuse_quantized(fields)
    activation = fields.text("hidden_act", "silu")
    if activation != "silu":
        raise fields.fail("hidden_act", f"only 'silu' is supported, found {activation!r}")
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", traits.num_kv_heads or num_heads)
    if num_heads % num_kv_heads:
        raise fields.fail(
            "num_key_value_heads", f"{num_kv_heads} does not divide the {num_heads} attention heads"
        )
    hidden_size = fields.integer("hidden_size")
    head_dim = fields.integer("head_dim", traits.head_dim or hidden_size // num_heads)
    if head_dim % 2:
        raise fields.fail("head_dim", f"must be even for the rotary embedding, found {head_dim}")
    max_positions = fields.integer("max_position_embeddings")
    rope = read_rope(fields, max_positions)
    return DenseConfig(
        architecture=fields.get("architectures")[0],
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        max_position_embeddings=num_positions(rope, max_positions),
        attention=tuple(
            AttentionSpec(num_heads, num_kv_heads, head_dim, head_dim**-0.5, window)
            for window in windows
        ),
        rope=rope,
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
        qkv_bias=traits.qkv_bias,
        output_bias=traits.output_bias,
        mlp_bias=traits.mlp_bias,
        qk_norm=traits.qk_norm,
        dtype=read_dtype(fields),
        eos_token_ids=fields.token_ids("eos_token_id"),
    )


def num_layers(fields: JsonFields) -> int:
    return fields.integer("num_hidden_layers")


def tensors(config: DenseConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for index, attention in enumerate(config.attention):
        linears = {
            "self_attn.q_proj": (attention.query_size, hidden, config.qkv_bias),
            "self_attn.k_proj": (attention.kv_size, hidden, config.qkv_bias),
            "self_attn.v_proj": (attention.kv_size, hidden, config.qkv_bias),
            "self_attn.o_proj": (hidden, attention.query_size, config.output_bias),
            "mlp.gate_proj": (inner, hidden, config.mlp_bias),
            "mlp.up_proj": (inner, hidden, config.mlp_bias),
            "mlp.down_proj": (hidden, inner, config.mlp_bias),
        }
        layer = f"model.layers.{index}."
        shapes[f"{layer}input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (hidden,)
        if config.qk_norm:
            shapes[f"{layer}self_attn.q_norm.weight"] = (attention.head_dim,)
            shapes[f"{layer}self_attn.k_norm.weight"] = (attention.head_dim,)
        for name, (out_features, in_features, has_bias) in linears.items():
            shapes[f"{layer}{name}.weight"] = (out_features, in_features)
            if has_bias:
                shapes[f"{layer}{name}.bias"] = (out_features,)
    return shapes


def ignored(config: DenseConfig) -> frozenset[str]:
    """Derived tensors, and a tied head's copy."""
    layers = range(config.num_layers)
    names = {f"model.layers.{index}.self_attn.rotary_emb.inv_freq" for index in layers}
    if config.tie_word_embeddings:
        names.add("lm_head.weight")
    return frozenset(names)


def build(config: DenseConfig, load: WeightLoader, max_model_len: int) -> Decoder:
    embeddings = load.embeddings("model.embed_tokens.weight")
    ops, device, dtype = load.numerics.ops, load.numerics.device, load.numerics.dtype
    cos, sin = rope_tables(config.rope, config.head_dim, max_model_len)
    rotary = Rotary(ops, cos.to(device), sin.to(device))
    layers = [_layer(config, index, load, rotary) for index in range(config.num_layers)]
    norm = RmsNorm(ops, load.tensor(["model.norm.weight"]), config.rms_norm_eps)
    if config.tie_word_embeddings:
        head = load.numerics.make_linear(embeddings.to(dtype), None)
    else:
        head = load.linear(["lm_head"])
    return Decoder(embeddings, dtype, layers, norm, head)


def _layer(config: DenseConfig, index: int, load: WeightLoader, rotary: Rotary) -> Layer:
    name, ops = f"model.layers.{index}", load.numerics.ops

    def norm(of: str) -> RmsNorm:
        return RmsNorm(ops, load.tensor([f"{name}.{of}.weight"]), config.rms_norm_eps)

    attention = Attention(
        index=index,
        spec=config.attention[index],
        qkv=load.linear([f"{name}.self_attn.{x}_proj" for x in "qkv"], bias=config.qkv_bias),
        output=load.linear([f"{name}.self_attn.o_proj"], bias=config.output_bias),
        rotary=rotary,
        q_norm=norm("self_attn.q_norm") if config.qk_norm else None,
        k_norm=norm("self_attn.k_norm") if config.qk_norm else None,
    )
    mlp = Mlp(
        ops=ops,
        gate_up=load.linear([f"{name}.mlp.{x}_proj" for x in ("gate", "up")], bias=config.mlp_bias),
        down=load.linear([f"{name}.mlp.down_proj"], bias=config.mlp_bias),
    )
    return Layer(norm("input_layernorm"), attention, norm("post_attention_layernorm"), mlp)
