"""How many characters of text one token can stand for at most, from tokenizer.json alone.

A text of more than so many times the context's tokens does not fit, and that is known without tokenizing it.
The bound must never be wrong: where a step of the tokenizer could drop or merge characters in a way that is
not known here, there is none. Every character that comes in must come out as a part of some token, and no
token may be longer than its entry of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from router.text.token_bytes import BYTE_OF_CHAR

# Of Unicode's normal forms: at most so many characters become one. U+1FA7 is composed of a letter and three
# marks; compatibility forms only make more of one.
_COMPOSED = 4


def max_chars_per_token(spec: Mapping[str, Any]) -> int | None:
    """None where the tokenizer is of a kind for which no bound is known."""
    shrink = _shrink(spec.get("normalizer"))
    if shrink is None or not _keeps_all(spec.get("pre_tokenizer")):
        return None
    added = spec.get("added_tokens") or []
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return None  # takes any number of spaces into itself
    model = spec.get("model") or {}
    vocab = model.get("vocab")
    if model.get("type") != "BPE" or not isinstance(vocab, dict) or not vocab:
        return None
    if not _knows_every_character(model, spec):
        return None
    longest = max(map(len, (*vocab, *(token["content"] for token in added))))
    return shrink * longest


def _shrink(normalizer: Any) -> int | None:
    """How many characters at most become one; None where that is not known."""
    match normalizer:
        case None | {"type": "Prepend" | "NFD" | "NFKD"}:
            return 1
        case {"type": "NFC" | "NFKC"}:
            return _COMPOSED
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return 1 if len(old) <= len(new) else None
        case {"type": "Sequence", "normalizers": list(steps)}:
            shrinks = [_shrink(step) for step in steps]
            known = [shrink for shrink in shrinks if shrink is not None]
            return prod(known) if len(known) == len(steps) else None
    return None


def _keeps_all(pre_tokenizer: Any) -> bool:
    match pre_tokenizer:
        case None | {"type": "ByteLevel" | "Metaspace" | "Digits"}:
            return True
        case {"type": "Split" | "Punctuation", "behavior": str(behavior)}:
            return behavior != "Removed"
        case {"type": "Sequence", "pretokenizers": list(steps)}:
            return all(map(_keeps_all, steps))
    return False


def _knows_every_character(model: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
    """Whether no character is passed over, and no run of unknown ones becomes a single token."""
    vocab = model["vocab"]
    if _is_byte_level(spec.get("pre_tokenizer")):
        return all(char in vocab for char in BYTE_OF_CHAR)
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in vocab for byte in range(256)):
        return True
    return model.get("unk_token") in vocab and not model.get("fuse_unk")


def _is_byte_level(pre_tokenizer: Any) -> bool:
    match pre_tokenizer:
        case {"type": "ByteLevel"}:
            return True
        case {"type": "Sequence", "pretokenizers": list(steps)}:
            return any(map(_is_byte_level, steps))
    return False
