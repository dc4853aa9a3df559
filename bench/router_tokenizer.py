"""A checkpoint folder without weights, for measurements of the router: as many tokens as a real model has,
each a word, so that every token is worth detokenizing and its id can tell when it was made."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

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
