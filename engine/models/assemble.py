"""From a checkpoint's tensors to a decoder: which names hold what, and which are fused.

The only place that knows Hugging Face tensor names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.errors import ConfigError
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder, Layer, Mlp, RmsNorm, Rotary
from engine.models.rope import rope_tables
from engine.quantize import Linear
from engine.row_ops import RowOps
from engine.weights import WeightSource

Progress = Callable[[int, int], None]  # (bytes done, bytes in total)
_FP16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class Numerics:
    """How the decoder computes: `dtype` is that of the activations and of what `make_linear` is given.
    `packs`: it copies its weight. `stored_fp16`: weights end as fp16."""

    device: torch.device
    dtype: torch.dtype
    packs: bool
    stored_fp16: bool
    make_linear: Callable[[Tensor, Tensor | None], Linear]
    ops: RowOps


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the checkpoint must hold."""
    hidden, inner = config.hidden_size, config.intermediate_size
    linears = {
        "self_attn.q_proj": (config.query_size, hidden, config.qkv_bias),
        "self_attn.k_proj": (config.kv_size, hidden, config.qkv_bias),
        "self_attn.v_proj": (config.kv_size, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, config.query_size, config.output_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, hidden)
    for index in range(config.num_layers):
        layer = f"model.layers.{index}."
        tensors[f"{layer}input_layernorm.weight"] = (hidden,)
        tensors[f"{layer}post_attention_layernorm.weight"] = (hidden,)
        if config.qk_norm:
            tensors[f"{layer}self_attn.q_norm.weight"] = (config.head_dim,)
            tensors[f"{layer}self_attn.k_norm.weight"] = (config.head_dim,)
        for name, (out_features, in_features, has_bias) in linears.items():
            tensors[f"{layer}{name}.weight"] = (out_features, in_features)
            if has_bias:
                tensors[f"{layer}{name}.bias"] = (out_features,)
    return tensors


def unwanted_tensors(config: ModelConfig) -> frozenset[str]:
    """Tensors that a checkpoint may hold beside the expected ones: derived, or a tied head's copy."""
    layers = range(config.num_layers)
    names = {f"model.layers.{index}.self_attn.rotary_emb.inv_freq" for index in layers}
    if config.tie_word_embeddings:
        names.add("lm_head.weight")
    return frozenset(names)


def assemble(
    config: ModelConfig,
    source: WeightSource,
    numerics: Numerics,
    max_model_len: int,
    progress: Progress | None = None,
) -> Decoder:
    """Reads, converts and packs every tensor once; holds one of them at a time."""
    return _Assembler(config, source, numerics, progress).decoder(max_model_len)


class _Assembler:
    def __init__(
        self,
        config: ModelConfig,
        source: WeightSource,
        numerics: Numerics,
        progress: Progress | None,
    ) -> None:
        self._config = config
        self._source = source
        self._numerics = numerics
        self._progress = progress
        self._shapes = expected_tensors(config)
        self._scratch = torch.empty(0)
        self._done_bytes = 0

    def decoder(self, max_model_len: int) -> Decoder:
        config, numerics = self._config, self._numerics
        stored = torch.float16 if numerics.stored_fp16 else numerics.dtype
        embeddings = self._tensor(["model.embed_tokens.weight"], stored)
        cos, sin = rope_tables(config.rope, config.head_dim, max_model_len)
        rotary = Rotary(numerics.ops, cos.to(numerics.device), sin.to(numerics.device))
        layers = [self._layer(index, rotary) for index in range(config.num_layers)]
        norm = self._norm("model.norm")
        if config.tie_word_embeddings:
            head = numerics.make_linear(embeddings.to(numerics.dtype), None)
        else:
            head = self._linear(["lm_head"], has_bias=False)
        return Decoder(embeddings, numerics.dtype, layers, norm, head)

    def _layer(self, index: int, rotary: Rotary) -> Layer:
        config, name = self._config, f"model.layers.{index}"
        attention = Attention(
            index=index,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            window=config.sliding_windows[index],
            qkv=self._linear([f"{name}.self_attn.{x}_proj" for x in "qkv"], config.qkv_bias),
            output=self._linear([f"{name}.self_attn.o_proj"], config.output_bias),
            rotary=rotary,
            q_norm=self._norm(f"{name}.self_attn.q_norm") if config.qk_norm else None,
            k_norm=self._norm(f"{name}.self_attn.k_norm") if config.qk_norm else None,
        )
        mlp = Mlp(
            ops=self._numerics.ops,
            gate_up=self._linear([f"{name}.mlp.{x}_proj" for x in ("gate", "up")], config.mlp_bias),
            down=self._linear([f"{name}.mlp.down_proj"], config.mlp_bias),
        )
        before_attention = self._norm(f"{name}.input_layernorm")
        before_mlp = self._norm(f"{name}.post_attention_layernorm")
        return Layer(before_attention, attention, before_mlp, mlp)

    def _linear(self, names: Sequence[str], has_bias: bool) -> Linear:
        """One linear whose outputs are those of `names`, one after the other."""
        dtype = self._numerics.dtype
        weight = self._tensor([f"{name}.weight" for name in names], dtype, self._numerics.packs)
        bias = self._tensor([f"{name}.bias" for name in names], dtype) if has_bias else None
        return self._numerics.make_linear(weight, bias)

    def _norm(self, name: str) -> RmsNorm:
        weight = self._tensor([f"{name}.weight"], self._numerics.dtype)
        return RmsNorm(self._numerics.ops, weight, self._config.rms_norm_eps)

    def _tensor(self, names: Sequence[str], dtype: torch.dtype, passing: bool = False) -> Tensor:
        """The tensors `names` stacked along their first dimension, on the device.

        One that is `passing` is valid until the next such call.
        """
        shapes = [self._shapes[name] for name in names]
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if passing:
            out = self._scratch_tensor(shape, dtype)
        else:
            out = torch.empty(shape, dtype=dtype, device=self._numerics.device)
        parts = out.split([shape[0] for shape in shapes])
        for name, part in zip(names, parts, strict=True):
            self._copy(name, part)
        return out

    def _scratch_tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """One buffer for all that is packed: buffers freed between packs would leave holes in the
        heap, and peak memory well above the packed weights."""
        count = math.prod(shape)
        if self._scratch.numel() < count:
            self._scratch = torch.empty(0)  # the old one goes first
            self._scratch = torch.empty(count, dtype=dtype, device=self._numerics.device)
        return self._scratch[:count].view(shape)

    def _copy(self, name: str, out: Tensor) -> None:
        tensor = self._source.read(name)
        if self._numerics.stored_fp16:
            low, high = tensor.aminmax()
            if not max(-low.item(), high.item()) <= _FP16_MAX:  # also false for NaN
                raise ConfigError(
                    f"has values from {low.item():g} to {high.item():g}, beyond fp16's range; "
                    "load it with dtype fp32",
                    field=name,
                )
        out.copy_(tensor)
        self._done_bytes += tensor.nbytes
        if self._progress is not None:
            self._progress(self._done_bytes, self._source.total_bytes)
