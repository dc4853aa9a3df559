"""What every token stands for, as bytes.

The decoders of all served families are concatenations: the text of some tokens is the UTF-8
decoding of their bytes, one after the other, but for leading spaces that some sentencepiece-like
decoders strip from the very start. That makes decoding incremental, O(1) per token and a pure
function of the tokens. A decoder of another kind is refused at load. The byte alphabet is GPT-2's
(Radford et al. 2019).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from baton.errors import ConfigError

_FALLBACK_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

TokenToBytes = Callable[[str], bytes]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for every byte: itself where printable, else the next free one."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(byte): byte for byte in printable}
    return stand_ins | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_OF_CHAR = _byte_alphabet()


@dataclass(frozen=True, slots=True)
class Decoder:
    """How tokens become bytes, and what the start of a text loses: up to `num_strips` leading
    `strip`, or what `first_to_bytes` leaves out of the first token."""

    to_bytes: TokenToBytes
    strip: bytes = b""
    num_strips: int = 0
    first_to_bytes: TokenToBytes | None = None


def read_decoder(spec: dict[str, Any] | None) -> Decoder:
    """The decoder that tokenizer.json describes."""
    match spec:
        case {"type": "ByteLevel"}:
            return Decoder(_byte_level)
        case {"type": "Metaspace", **options}:
            mark = str(options.get("replacement", "▁"))
            if options.get("prepend_scheme", "always") == "never":
                return Decoder(_replaced([(mark, " ")]))
            return Decoder(_replaced([(mark, " ")]), first_to_bytes=_replaced([(mark, "")]))
        case {"type": "Sequence", "decoders": list(steps)}:
            return _read_sequence(steps)
    kind = spec.get("type") if spec else None
    raise ConfigError(f"a decoder of type {kind} is not supported", field="tokenizer.json.decoder")


def _read_sequence(steps: list[dict[str, Any]]) -> Decoder:
    """Replace*, ByteFallback?, Fuse?, Strip? as Llama 2 and its relatives have them."""
    replacements: list[tuple[str, str]] = []
    has_fallback = False
    strip, num_strips = b"", 0
    is_fused = False
    for step in steps:
        match step:
            case {"type": "ByteLevel"} if len(steps) == 1:
                return Decoder(_byte_level)
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if (
                not is_fused and not has_fallback
            ):
                replacements.append((old, new))
            case {"type": "ByteFallback"} if not is_fused:
                has_fallback = True
            case {"type": "Fuse"}:
                is_fused = True
            case {"type": "Strip", "content": str(content), "start": int(start), "stop": 0} if (
                is_fused and not num_strips
            ):
                strip, num_strips = content.encode(), start
            case _:
                raise ConfigError(
                    f"decoder step {step} is not supported here", field="tokenizer.json.decoder"
                )
    return Decoder(_replaced(replacements, has_fallback=has_fallback), strip, num_strips)


def _byte_level(token: str) -> bytes:
    """A token with a character outside of the byte alphabet (an added token) is its own text."""
    try:
        return bytes([BYTE_OF_CHAR[char] for char in token])
    except KeyError:
        return token.encode()


def _replaced(replacements: list[tuple[str, str]], *, has_fallback: bool = False) -> TokenToBytes:
    def to_bytes(token: str) -> bytes:
        for old, new in replacements:
            token = token.replace(old, new)
        if has_fallback and (byte := _FALLBACK_BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return token.encode()

    return to_bytes


class TokenBytes:
    """Token id -> bytes, computed on first use; an id without a token (padding of the embedding)
    has none. Threads may share it: two that compute the same entry write the same value."""

    def __init__(self, tokenizer: Tokenizer, decoder: Decoder) -> None:
        self.decoder = decoder
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id: t.content for token_id, t in added.items() if t.special}
        self._visible: dict[int, bytes] = dict.fromkeys(self._special, b"")

    def first(self, token_id: int) -> bytes | None:
        """The bytes of a text's first token; None where this token does not count as one."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._special or self.decoder.first_to_bytes is None:
            return None
        return self.decoder.first_to_bytes(token)

    def visible(self, token_id: int) -> bytes:
        """What the token adds to the text: nothing for a special token."""
        known = self._visible.get(token_id)
        if known is not None:
            return known
        token = self._tokenizer.id_to_token(token_id)
        found = b"" if token is None else self.decoder.to_bytes(token)
        self._visible[token_id] = found
        return found

    def named(self, token_id: int) -> bytes:
        """What log-probabilities show: as `visible`, but a special token's name."""
        name = self._special.get(token_id)
        return self.visible(token_id) if name is None else name.encode()
