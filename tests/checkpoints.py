"""Small random checkpoints in the Hugging Face layout, made on the spot for tests of every room.

Weights are spread wider than a fresh model's, so that logits differ and greedy choices are seldom ties.
The tokenizer is a byte-level BPE whose ids 0..255 are the bytes, so any text round-trips.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

VOCAB_SIZE = 320
BOS, EOS, IM_START, IM_END = 316, 317, 318, 319
_SPECIAL = {"<s>": BOS, "</s>": EOS, "<|im_start|>": IM_START, "<|im_end|>": IM_END}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
_FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
}


def make_checkpoint(
    folder: Path,
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    seed: int = 0,
    spread: float = 0.12,
    generation: dict[str, Any] | None = None,
    **quirks: Any,
) -> Path:
    """Writes a complete checkpoint of `family` (llama, mistral, qwen2, qwen3) and returns its folder.

    `quirks` are fields of its config.json; `spread` the deviation of its weights; `generation` fields
    of generation_config.json; a small `max_shard_size` ("50KB") makes several files and an index.
    """
    model = reference_model(family, seed=seed, spread=spread, **quirks).to(dtype)
    model.config.dtype = dtype
    if generation is not None:
        model.generation_config = transformers.GenerationConfig(
            **{"eos_token_id": EOS} | generation
        )
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_tokenizer(folder)
    return folder


def reference_model(family: str, *, seed: int = 0, spread: float = 0.12, **quirks: Any) -> Any:
    """transformers' own model of a small random shape, fp32."""
    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }
    make_config, make_model = kinds[family]
    config = make_config(**SMALL | _FAMILY_DEFAULTS[family] | quirks)
    model = make_model(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if name.endswith("norm.weight") else spread * noise)
    return model


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json (byte-level BPE with a few merges) and tokenizer_config.json."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("a", "n"), ("an", "d")]
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    filler = (f"<unused{index}>" for index in range(VOCAB_SIZE))
    while len(vocabulary) < BOS:
        vocabulary[next(filler)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    if tokenizer.token_to_id("<|im_end|>") != IM_END:
        raise AssertionError("the special tokens did not get the last ids")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def edit_config(folder: Path, file: str = "config.json", **changes: Any) -> None:
    """Sets fields of a JSON file in `folder`; a value of `...` deletes the field."""
    path = folder / file
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def copy_checkpoint(source: Path, target: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(source, target))
