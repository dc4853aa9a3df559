"""config.json: both spellings of transformers, and refusals by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from baton.engine.models.dense import DenseConfig
from baton.engine.models.registry import read_model_config
from baton.engine.models.rope_config import RopeConfig
from baton.errors import ConfigError

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def write(folder: Path, file: str = "config.json", **values: Any) -> Path:
    (folder / file).write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    return folder


def read(folder: Path, **changes: Any) -> DenseConfig:
    config = read_model_config(write(folder, **BASE | changes))
    assert isinstance(config, DenseConfig)
    return config


def test_both_spellings_of_rope_mean_the_same(tmp_path: Path) -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    old = read(tmp_path, rope_theta=5e5, rope_scaling={"rope_type": "llama3"} | scaling)
    older = read(tmp_path, rope_theta=5e5, rope_scaling={"type": "llama3"} | scaling)
    rope = {"rope_type": "llama3", "rope_theta": 5e5} | scaling
    new = read(tmp_path, rope_parameters=rope)
    assert old == older == new
    assert new.rope == RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 128)
    assert read(tmp_path, rope_theta=1e6, rope_scaling=None).rope == RopeConfig(1e6)


def test_both_spellings_of_dtype_and_end_tokens(tmp_path: Path) -> None:
    assert read(tmp_path, torch_dtype="bfloat16").dtype == "bf16"
    assert read(tmp_path, dtype="float16").dtype == "fp16"
    assert read(tmp_path, eos_token_id=7).eos_token_ids == (7,)
    assert read(tmp_path, eos_token_id=[7, 9]).eos_token_ids == (7, 9)
    assert read(tmp_path, eos_token_id=None).eos_token_ids == ()


def test_windows_are_those_of_the_family(tmp_path: Path) -> None:
    mistral = {"architectures": ["MistralForCausalLM"]}
    qwen: dict[str, Any] = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 30}
    types = ["sliding_attention", "full_attention"] * 2
    no_window: dict[str, Any] = {"use_sliding_window": True, "sliding_window": None}
    found = {
        "llama": read(tmp_path, sliding_window=30),
        "null": read(tmp_path, **mistral, sliding_window=None),
        "absent": read(tmp_path, **mistral),
        "mistral": read(tmp_path, **mistral, sliding_window=30),
        "unused": read(tmp_path, **qwen, use_sliding_window=False, max_window_layers=1),
        "late": read(tmp_path, **qwen, use_sliding_window=True, max_window_layers=3),
        "typed": read(tmp_path, **qwen, use_sliding_window=True, layer_types=types),
        "no window": read(tmp_path, **qwen | no_window, max_window_layers=1),
    }
    assert {
        name: tuple(spec.window for spec in config.attention) for name, config in found.items()
    } == {
        "llama": (0, 0, 0, 0),
        "null": (0, 0, 0, 0),
        "absent": (4096,) * 4,
        "mistral": (30, 30, 30, 30),
        "unused": (0, 0, 0, 0),
        "late": (0, 0, 0, 30),
        "typed": (30, 0, 30, 0),
        "no window": (0, 0, 0, 0),
    }
    with pytest.raises(ConfigError, match="layer_types"):
        read(tmp_path, **qwen | no_window, layer_types=types)


def test_the_context_is_what_the_rotary_embedding_extends_it_to(tmp_path: Path) -> None:
    """Qwen's recipe for 131,072 tokens, and others."""
    qwen = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    counted = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    linear = {"rope_type": "linear", "factor": 2.5}

    def length(**rope: Any) -> int:
        return read(tmp_path, max_position_embeddings=32768, **rope).max_position_embeddings

    assert length(rope_scaling=qwen) == 131_072
    assert length(rope_scaling=counted) == 32768
    assert length(rope_scaling=linear) == 81_920
    assert length(rope_scaling=llama3) == length() == 32768


def test_rope_may_be_said_for_each_type_of_layer(tmp_path: Path) -> None:
    full = {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}
    nested = {"full_attention": full, "sliding_attention": dict(full)}
    assert read(tmp_path, rope_parameters=nested).rope == read(tmp_path, rope_parameters=full).rope
    nested["sliding_attention"]["rope_theta"] = 1e4
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, rope_parameters=nested)
    assert caught.value.field.startswith("rope_parameters.")


def test_biases_and_norms_are_those_of_the_family(tmp_path: Path) -> None:
    def traits(family: str, **changes: Any) -> tuple[bool, ...]:
        config = read(tmp_path, architectures=[f"{family}ForCausalLM"], **changes)
        return config.qkv_bias, config.output_bias, config.mlp_bias, config.qk_norm

    assert traits("Llama") == (False, False, False, False)
    assert traits("Llama", attention_bias=True, mlp_bias=True) == (True, True, True, False)
    assert traits("Mistral") == (False, False, False, False)
    assert traits("Qwen2") == (True, False, False, False)
    assert traits("Qwen3", attention_bias=True) == (True, True, False, True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", ["GPT2LMHeadModel"]),
        ("architectures", ...),
        ("architectures", "LlamaForCausalLM"),
        ("vocab_size", ...),
        ("hidden_size", "64"),
        ("hidden_size", 0),
        ("num_hidden_layers", True),
        ("num_hidden_layers", -1),
        ("num_key_value_heads", 3),
        ("head_dim", 7),
        ("max_position_embeddings", None),
        ("hidden_act", "gelu"),
        ("rms_norm_eps", -1e-6),
        ("tie_word_embeddings", "yes"),
        ("dtype", "int8"),
        ("eos_token_id", -1),
        ("eos_token_id", ["a"]),
        ("quantization_config", {"quant_method": "gptq"}),
        ("partial_rotary_factor", 0.5),
        ("rope_scaling", "llama3"),
    ],
)
def test_wrong_field_is_named_with_its_file(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **{field: value})
    assert caught.value.field == field
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("scaling", "field"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_scaling.rope_type"),
        ({"rope_type": "linear"}, "rope_scaling.factor"),
        ({"rope_type": "linear", "factor": 0}, "rope_scaling.factor"),
        (
            {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4},
            "rope_scaling.low_freq_factor",
        ),
        ({"rope_type": "yarn", "factor": 4, "mscale": 0.7}, "rope_scaling.mscale"),
    ],
)
def test_wrong_rope_field_is_named(tmp_path: Path, scaling: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, rope_scaling=scaling)
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["", "{", "[1]", "\ufffd{}"])
def test_what_is_no_json_object_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_model_config(tmp_path)
    assert caught.value.field == "config.json"
