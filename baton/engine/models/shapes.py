"""Named model shapes for `load_format="dummy"`: real sizes without a checkpoint."""

from __future__ import annotations

from baton.engine.attention.spec import AttentionSpec
from baton.engine.models.dense import DenseConfig
from baton.engine.models.rope_config import RopeConfig

SHAPES: dict[str, DenseConfig] = {
    # Qwen2.5-0.5B as published: 494 M parameters.
    "qwen2.5-0.5b": DenseConfig(
        architecture="Qwen2ForCausalLM",
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        attention=(AttentionSpec(num_heads=14, num_kv_heads=2, head_dim=64, scale=64**-0.5),) * 24,
        max_position_embeddings=32768,
        rope=RopeConfig(theta=1e6),
        tie_word_embeddings=True,
        qkv_bias=True,
        eos_token_ids=(151645, 151643),
    ),
    # Small enough that one CPU core serves it: 125 M parameters.
    "llama-125m": DenseConfig(
        architecture="LlamaForCausalLM",
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        attention=(AttentionSpec(num_heads=12, num_kv_heads=4, head_dim=64, scale=64**-0.5),) * 12,
        max_position_embeddings=4096,
        rope=RopeConfig(theta=10000.0),
        rms_norm_eps=1e-5,
        eos_token_ids=(2,),
    ),
}
