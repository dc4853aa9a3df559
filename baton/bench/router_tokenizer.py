"""Tokenizers for measurements of the router. A checkpoint folder without weights: as many tokens as a real
model has, each a word, so that every token is worth detokenizing and its id can tell when it was made. And a
prompt's text, with a byte-level BPE that was trained on its like, as prompts of real models are.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 1 << 16
NUM_WORDS = VOCAB_SIZE - 256  # the ids below are words, the others bytes


def write_checkpoint(folder: Path) -> Path:
    """config.json and tokenizer.json of a byte-level model."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġ{index:x}" for index in range(NUM_WORDS)]
    vocab = {token: index for index, token in enumerate([*words, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 1 << 20}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def trained_on_prose(num_tokens: int, *, seed: int = 0) -> tuple[Tokenizer, str]:
    """The tokenizer, and a text of about `num_tokens`: made-up words, the short ones more often."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(rng.choices(syllables, k=rng.randrange(1, 5))) for _ in range(5000)]
    weights = [1 / (1 + index) for index in range(len(words))]
    text = " ".join(rng.choices(words, weights, k=max(1000, num_tokens)))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer, text[: tokenizer.encode(text).offsets[:num_tokens][-1][1]]
